// launch(grid, block, shared, stream, kernel, args): CUDA's <<<>>>, or fibres (tests/cuda/host/launch.hpp). Launchers
// are compiled for both from the same text.
#pragma once
#include "core/error.hpp"

#include <stdint.h>
#include <string>

namespace nf::cuda {

typedef void *Stream; // cudaStream_t

} // namespace nf::cuda

#ifdef __CUDACC__
#include <cuda_runtime.h>

namespace nf::cuda {

inline void check_runtime(const char *what, cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

// Of the current device: 90 for 9.0.
inline int capability() {
    int device = 0, major = 0, minor = 0;
    check_runtime("cudaGetDevice", cudaGetDevice(&device));
    check_runtime("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check_runtime("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return 10 * major + minor;
}

// Shared memory beyond 48 KiB must be asked for, once a kernel and device; asking again costs a few hundred
// nanoseconds.
template <class Args>
void launch(const char *what, int64_t grid, int threads, int64_t shared, Stream stream, void (*kernel)(Args),
            const Args &args) {
    if (grid == 0)
        return;
    if (grid > 0x7fffffff)
        fail_value(what, "must need at most 2**31 - 1 blocks, got " + std::to_string(grid));
    if (shared > 48 * 1024)
        check_runtime(what, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    kernel<<<unsigned(grid), unsigned(threads), size_t(shared), static_cast<cudaStream_t>(stream)>>>(args);
    check_runtime(what, cudaGetLastError());
}

inline void fill_zeros(const char *what, void *to, int64_t bytes, Stream stream) {
    if (bytes > 0)
        check_runtime(what, cudaMemsetAsync(to, 0, size_t(bytes), static_cast<cudaStream_t>(stream)));
}

} // namespace nf::cuda
#else
#include "host/launch.hpp"
#endif
