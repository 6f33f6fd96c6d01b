// A caching allocator: 64-byte aligned blocks that are kept for the next call of the same size instead of being
// returned to the system, because touching fresh pages costs a Transformer's step 10 to 20%. Thread-safe, bounded, and
// never destroyed, so that an array may outlive the interpreter.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nf::pool {

constexpr size_t kAlignment = 64;

// Null when the system has no more memory (cached blocks are given back first). size 0 gives a valid pointer.
void *allocate(size_t bytes) noexcept;
// For what is kept long and read often, weights: blocks of some size lie side by side, so that all of them are in huge
// pages (on a Zen 4 one thread reads 1.25 times as much in the same time), and are not kept for reuse.
void *allocate_together(size_t bytes) noexcept;
void release(void *pointer) noexcept;

struct Statistics {
    int64_t bytes_in_use, bytes_cached, peak_bytes, limit;
};
Statistics statistics();
void reset_peak();
// At most this many bytes are kept for reuse; more are returned to the system at once.
void set_limit(int64_t bytes);
void empty();

} // namespace nf::pool
