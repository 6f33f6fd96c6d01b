#include "runtime/kernels.hpp"

#include "runtime/processor.hpp"

namespace nf {

#if defined(NUMFORMER_ONLY_LEVEL)
namespace NUMFORMER_ONLY_LEVEL {
void fill_table(Kernels &);
}
#elif defined(NUMFORMER_X86)
namespace v2 {
void fill_table(Kernels &);
}
namespace v3 {
void fill_table(Kernels &);
}
namespace v4 {
void fill_table(Kernels &);
}
namespace v4bf16 {
void fill_table(Kernels &);
}
namespace v4amx {
void fill_table(Kernels &);
}
#else
namespace neon {
void fill_table(Kernels &);
}
#endif

namespace runtime {
namespace {

Kernels load() {
    Kernels table{};
    const std::string level = choose_level();
#if defined(NUMFORMER_ONLY_LEVEL)
    NUMFORMER_ONLY_LEVEL::fill_table(table);
#elif defined(NUMFORMER_X86)
    if (level == "v2")
        v2::fill_table(table);
    else if (level == "v3")
        v3::fill_table(table);
    else if (level == "v4")
        v4::fill_table(table);
    else
        v4bf16::fill_table(table);
    if (level == "v4amx")
        v4amx::fill_table(table); // those that multiply bfloat16, in place of v4bf16's
#else
    neon::fill_table(table);
#endif
    return table;
}

} // namespace

const Kernels &kernels() {
    static const Kernels table = load();
    return table;
}

} // namespace runtime
} // namespace nf
