#include "runtime/processor.hpp"

#include "core/error.hpp"

#include <algorithm>
#include <cstdlib>

#if defined(NUMFORMER_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nf::runtime {
namespace {

#if defined(NUMFORMER_X86)
// AMX with products of bfloat16. Linux grants a process its matrix registers on request only, for signal frames have to
// hold them; elsewhere they are not asked for.
bool may_use_matrix_registers() {
#if defined(__linux__)
    constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24; // of EDX
    constexpr int kRequest = 0x1023, kTileData = 18;            // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kBfloat16) && (edx & kTiles) &&
           syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}
#endif

} // namespace

std::vector<std::string> available_levels() {
    std::vector<std::string> levels;
#if defined(NUMFORMER_X86)
    // The compiler's run-time library checks CPUID and, by XGETBV, that the system saves the wide registers.
    __builtin_cpu_init();
    const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    const bool v3 =
        v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v2)
        levels.push_back("v2");
    if (v3)
        levels.push_back("v3");
    if (v4)
        levels.push_back("v4");
    if (v4 && __builtin_cpu_supports("avx512bf16"))
        levels.push_back("v4bf16");
    if (levels.size() == 4 && may_use_matrix_registers())
        levels.push_back("v4amx");
#else
    levels.push_back("neon");
#endif
#if defined(NUMFORMER_ONLY_LEVEL)
#define NUMFORMER_TEXT(name) #name
#define NUMFORMER_NAME(name) NUMFORMER_TEXT(name)
    levels.erase(std::remove_if(levels.begin(), levels.end(),
                                [](const std::string &level) { return level != NUMFORMER_NAME(NUMFORMER_ONLY_LEVEL); }),
                 levels.end());
#endif
    return levels;
}

std::string choose_level() {
    const std::vector<std::string> levels = available_levels();
    std::string known;
    for (const std::string &level : levels)
        known += (known.empty() ? "" : ", ") + level;
    if (levels.empty())
        throw ValueError("numformer: this processor lacks SSE4.2 (x86-64-v2), which the lowest kernels need");
    const char *forced = std::getenv("NUMFORMER_ISA");
    if (!forced || !*forced)
        return levels.back();
    if (std::find(levels.begin(), levels.end(), forced) == levels.end())
        throw ValueError("NUMFORMER_ISA must be one of the levels that this machine has (" + known + "), got '" +
                         std::string(forced) + "'");
    return forced;
}

bool has_threads() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

} // namespace nf::runtime
