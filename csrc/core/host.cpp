#include "core/host.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(_WIN32)
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
// After windows.h, which it needs.
#include <malloc.h>
#include <psapi.h>

#include <vector>
#else
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#elif defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif
#endif

namespace nf::host {

#if defined(__linux__)
namespace {

// A large block shall lie in huge pages where the kernel leaves that to the program ("madvise", what most distributions
// set): a read of memory then waits for fewer translations of addresses. NumPy asks for the same of its arrays, from
// the same size on. It is advice: where it cannot be followed nothing changes.
constexpr size_t kHugeBytes = size_t(4) << 20;
void advise_huge_pages(void *block, size_t bytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto first = (reinterpret_cast<uintptr_t>(block) + page - 1) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(block) + bytes) / page * page;
    madvise(reinterpret_cast<void *>(first), end - first, MADV_HUGEPAGE);
}

} // namespace
#endif

void *allocate_aligned(size_t alignment, size_t bytes) noexcept {
#if defined(_WIN32)
    return _aligned_malloc(bytes, alignment);
#else
    void *block = std::aligned_alloc(alignment, bytes);
#if defined(__linux__)
    if (block && bytes >= kHugeBytes)
        advise_huge_pages(block, bytes);
#endif
    return block;
#endif
}

void free_aligned(void *block) noexcept {
#if defined(_WIN32)
    _aligned_free(block);
#else
    std::free(block);
#endif
}

void at_fork([[maybe_unused]] void (*before)(), [[maybe_unused]] void (*in_parent)(),
             [[maybe_unused]] void (*in_child)()) {
#if !defined(_WIN32)
    pthread_atfork(before, in_parent, in_child);
#endif
}

int32_t thread_number() {
#if defined(__linux__)
    return static_cast<int32_t>(syscall(SYS_gettid));
#else
    static std::atomic<int32_t> next{1};
    thread_local const int32_t number = next++;
    return number;
#endif
}

int allowed_processors() {
#if defined(__linux__)
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 0;
#elif defined(_WIN32)
    DWORD_PTR ours = 0, all = 0;
    if (!GetProcessAffinityMask(GetCurrentProcess(), &ours, &all))
        return 0;
    int count = 0;
    for (; ours; ours &= ours - 1)
        ++count;
    return count;
#else
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? static_cast<int>(online) : 0;
#endif
}

#if defined(__linux__)
namespace {

// Whole processors of a quota, rounded up; 0 for none.
int whole(long long quota, long long period) {
    return quota > 0 && period > 0 ? static_cast<int>(std::min<long long>((quota - 1) / period + 1, 1 << 20)) : 0;
}

// The quota of one cgroup of version 2, "quota period" or "max period".
int quota_v2(const std::string &folder) {
    long long quota = 0, period = 0;
    if (FILE *file = std::fopen((folder + "/cpu.max").c_str(), "r")) {
        if (std::fscanf(file, "%lld %lld", &quota, &period) != 2)
            quota = 0;
        std::fclose(file);
    }
    return whole(quota, period);
}

// Of one of version 1, a file each; a quota of -1 is none.
int quota_v1(const std::string &folder) {
    long long values[2] = {0, 0};
    const char *names[] = {"/cpu.cfs_quota_us", "/cpu.cfs_period_us"};
    for (int i = 0; i < 2; ++i)
        if (FILE *file = std::fopen((folder + names[i]).c_str(), "r")) {
            if (std::fscanf(file, "%lld", &values[i]) != 1)
                values[i] = 0;
            std::fclose(file);
        }
    return whole(values[0], values[1]);
}

// Of two quotas, of which 0 is none.
int lesser(int a, int b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

// The least quota of a cgroup and all around it, up to the root of what is mounted. In a container the path may be that
// of the machine, of which only the last folders, or none, are mounted: what is not there has no quota.
int least_quota(const std::string &mount, std::string path, int (*quota_of)(const std::string &folder)) {
    int least = 0;
    for (;;) {
        while (!path.empty() && path.back() == '/')
            path.pop_back();
        least = lesser(least, quota_of(mount + path));
        if (path.empty())
            return least;
        path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
}

} // namespace
#endif

int processor_quota([[maybe_unused]] const char *root) {
    int least = 0;
#if defined(__linux__)
    const std::string base = root, mounts = base + "/sys/fs/cgroup";
    // Of each line "number:controllers:path" the path; version 2 has no controllers.
    std::string unified, of_cpu;
    if (FILE *file = std::fopen((base + "/proc/self/cgroup").c_str(), "r")) {
        char line[4096];
        while (std::fgets(line, sizeof line, file)) {
            line[std::strcspn(line, "\n")] = 0;
            char *controllers = std::strchr(line, ':'),
                 *path = controllers ? std::strchr(controllers + 1, ':') : nullptr;
            if (!path)
                continue;
            *path++ = 0;
            const std::string names = "," + std::string(controllers + 1) + ",";
            if (names == ",,")
                unified = path;
            else if (names.find(",cpu,") != std::string::npos)
                of_cpu = path;
        }
        std::fclose(file);
    }
    least = least_quota(mounts, unified, quota_v2);
    for (const char *folder : {"/cpu", "/cpu,cpuacct"})
        least = lesser(least, least_quota(mounts + folder, of_cpu, quota_v1));
#endif
    return least;
}

int64_t cache_bytes(int level) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
    const long bytes = sysconf(names[level - 1]);
    return bytes > 0 ? bytes : 0;
#elif defined(__APPLE__)
    // perflevel0 are the fast cores of a processor that has two kinds.
    const char *names[][2] = {{"hw.perflevel0.l1dcachesize", "hw.l1dcachesize"},
                              {"hw.perflevel0.l2cachesize", "hw.l2cachesize"},
                              {"hw.perflevel0.l3cachesize", "hw.l3cachesize"}};
    for (const char *name : names[level - 1]) {
        int64_t bytes = 0;
        size_t length = sizeof bytes;
        if (sysctlbyname(name, &bytes, &length, nullptr, 0) == 0 && bytes > 0)
            return bytes;
    }
    return 0;
#elif defined(_WIN32)
    DWORD length = 0;
    GetLogicalProcessorInformation(nullptr, &length);
    std::vector<SYSTEM_LOGICAL_PROCESSOR_INFORMATION> all(length / sizeof(SYSTEM_LOGICAL_PROCESSOR_INFORMATION));
    if (all.empty() || !GetLogicalProcessorInformation(all.data(), &length))
        return 0;
    for (const SYSTEM_LOGICAL_PROCESSOR_INFORMATION &part : all)
        if (part.Relationship == RelationCache && part.Cache.Level == level && part.Cache.Type != CacheInstruction)
            return part.Cache.Size;
    return 0;
#else
    return level ? 0 : 0;
#endif
}

int64_t resident_bytes() {
#if defined(__linux__)
    // Kept open: a look costs a microsecond.
    static const int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    static const long page = sysconf(_SC_PAGESIZE);
    char text[128];
    const ssize_t length = file < 0 ? -1 : pread(file, text, sizeof text - 1, 0);
    if (length <= 0)
        return 0;
    text[length] = 0;
    long long total = 0, resident = 0;
    return std::sscanf(text, "%lld %lld", &total, &resident) == 2 ? resident * page : 0;
#elif defined(__APPLE__)
    mach_task_basic_info facts;
    mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
    const auto target = reinterpret_cast<task_info_t>(&facts);
    return task_info(mach_task_self(), MACH_TASK_BASIC_INFO, target, &count) == KERN_SUCCESS
               ? static_cast<int64_t>(facts.resident_size)
               : 0;
#elif defined(_WIN32)
    PROCESS_MEMORY_COUNTERS counters;
    return K32GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters)
               ? static_cast<int64_t>(counters.WorkingSetSize)
               : 0;
#else
    return 0;
#endif
}

} // namespace nf::host
