// For tests of what happens without memory.
#pragma once
#include <cstdint>

namespace nf::pool {

// `count` allocations from now succeed, the one after them does not, and then all do again. Negative: all do.
// Returns what was left of the count before it.
int64_t fail_after(int64_t count);

} // namespace nf::pool
