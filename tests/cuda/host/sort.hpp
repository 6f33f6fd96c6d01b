// csrc/cuda/launchers/sort.hpp on the host.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

namespace nf::cuda {

inline Sorted sort_pairs(const char *, const uint32_t *keys, const uint32_t *values, int64_t count, uint32_t,
                         const Allocate &allocate, Stream) {
    uint32_t *const sorted_keys = static_cast<uint32_t *>(allocate(count * 4));
    uint32_t *const sorted_values = static_cast<uint32_t *>(allocate(count * 4));
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    for (size_t i = 0; i < order.size(); ++i) {
        sorted_keys[i] = keys[order[i]];
        sorted_values[i] = values[order[i]];
    }
    return {sorted_keys, sorted_values};
}

} // namespace nf::cuda
