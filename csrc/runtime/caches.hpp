// Sizes of this machine's caches. They choose how large blocks are, never the order of a sum.
#pragma once
#include <stdint.h>

namespace nf::runtime {

constexpr int64_t kLineBytes = 64; // of x86 and of most of AArch64; only prefetches count in it

// Bytes of the second-level cache of one core; 1 MiB where the system does not say.
int64_t second_level_cache();

} // namespace nf::runtime
