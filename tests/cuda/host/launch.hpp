// Launches on the host: at once, a block after the other.
#pragma once
#include "host/fibres.hpp"

#include <cstring>

namespace nf::cuda {

// Of the device that the host stands for: 80, or what a test wants.
inline int &capability() {
    static int value = 80;
    return value;
}

template <class Args>
void launch(const char *what, int64_t grid, int threads, int64_t shared, Stream, void (*kernel)(Args),
            const Args &args) {
    const int64_t most = (capability() >= 90 ? 227 : 163) * 1024; // of a block
    if (shared > most)
        host::fail(std::string(what) + ": " + std::to_string(shared) + " bytes of shared memory");
    host::run_grid(grid, threads, size_t(shared), [&] { kernel(args); });
}

inline void fill_zeros(const char *, void *to, int64_t bytes, Stream) {
    if (bytes > 0)
        std::memset(to, 0, size_t(bytes));
}

} // namespace nf::cuda
