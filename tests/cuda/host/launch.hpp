// Launches on the host: at once, a block after the other.
#pragma once
#include "host/fibres.hpp"

#include <cstring>

namespace nf::cuda {

template <class Args>
void launch(const char *what, int64_t grid, int threads, int64_t shared, Stream, void (*kernel)(Args),
            const Args &args) {
    constexpr int64_t kMostShared = 163 * 1024; // of a block on compute capability 8.0
    if (shared > kMostShared)
        host::fail(std::string(what) + ": " + std::to_string(shared) + " bytes of shared memory");
    host::run_grid(grid, threads, size_t(shared), [&] { kernel(args); });
}

inline void fill_zeros(const char *, void *to, int64_t bytes, Stream) {
    if (bytes > 0)
        std::memset(to, 0, size_t(bytes));
}

} // namespace nf::cuda
