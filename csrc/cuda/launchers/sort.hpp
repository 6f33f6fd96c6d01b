// A stable sort of keys with their values: CUB's radix sort, or the standard library's on the host
// (tests/cuda/host/sort.hpp).
#pragma once
#include "cuda/api.hpp"
#include "cuda/launch.hpp"

namespace nf::cuda {

struct Sorted {
    const uint32_t *keys, *values;
};

} // namespace nf::cuda

#ifdef __CUDACC__
#include <cub/device/device_radix_sort.cuh>

namespace nf::cuda {

// Keys are at most `largest`.
inline Sorted sort_pairs(const char *operation, const uint32_t *keys, const uint32_t *values, int64_t count,
                         uint32_t largest, const Allocate &allocate, Stream stream) {
    uint32_t *const sorted_keys = static_cast<uint32_t *>(allocate(count * 4));
    uint32_t *const sorted_values = static_cast<uint32_t *>(allocate(count * 4));
    int bits = 1;
    while (bits < 32 && largest >> bits)
        ++bits;
    size_t bytes = 0;
    void *scratch = nullptr;
    for (int pass = 0; pass < 2; ++pass) { // the first one only says how much it needs
        check_runtime(operation,
                      cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted_keys, values, sorted_values, count,
                                                      0, bits, static_cast<cudaStream_t>(stream)));
        if (pass == 0)
            scratch = allocate(int64_t(bytes));
    }
    return {sorted_keys, sorted_values};
}

} // namespace nf::cuda
#else
#include "host/sort.hpp"
#endif
