// What the kernels over rows and elements share: sums in a fixed order, the lanes behind a row's end, how work is
// divided.
#pragma once
#include "kernels/level.hpp"

namespace nf::NUMFORMER_LEVEL {

// Less work than this many elements stays on one thread: a fork and join costs about as much as reading them.
constexpr int64_t kGrain = 32768;
// Elements a thread must get where each costs tens of instructions.
constexpr int64_t kHeavyGrain = 4096;

// v with `fill` in the lanes from n on.
template <class A> NF_INLINE Vec<A> first_lanes(Vec<A> v, int n, A fill) {
    return n == kLanes<A> ? v : (iota<A>() < n ? v : broadcast(fill));
}

// The sum of f(offset, lanes) over a row: four chains of vectors, so that additions overlap, then their lanes.
template <class A, class F> NF_INLINE A row_sum(int64_t count, F f) {
    constexpr int W = kLanes<A>;
    Vec<A> a = {}, b = {}, c = {}, d = {};
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W) {
        a += f(i, W);
        b += f(i + W, W);
        c += f(i + 2 * W, W);
        d += f(i + 3 * W, W);
    }
    for (; i + W <= count; i += W)
        a += f(i, W);
    if (i < count)
        b += first_lanes<A>(f(i, int(count - i)), int(count - i), A(0));
    return reduce_add<A>((a + b) + (c + d));
}

template <class A, class T> NF_INLINE A row_max(int64_t count, const T *x) {
    Vec<A> top = broadcast(A(-__builtin_inf()));
    for_each_vector<A>(
        count, [&](int64_t i, int n) { top = max(top, first_lanes<A>(load_some(x + i, n), n, A(-__builtin_inf()))); });
    return reduce_max<A>(top);
}

// Rows a thread must get at least.
NF_INLINE int64_t row_grain(int64_t columns, int64_t grain = kGrain) { return larger(1, grain / larger(1, columns)); }

// f(task) for each task; on one thread if all of them together touch few elements.
template <class F> NF_INLINE void tasks_of_work(int64_t count, int64_t elements, F f) {
    if (elements < kGrain) {
        for (int64_t task = 0; task < count; ++task)
            f(task);
        return;
    }
    parallel_tasks(count, f);
}

// Sums over rows (gradients of biases and of norms) are made in chunks of this many rows, whose sums are added in
// order.
constexpr int64_t kChunkRows = 128;

// out[j] (+)= partial[0][j] + partial[1][j] + ..., rows of `stride` elements.
template <class A, class O>
NF_INLINE void add_partials(int64_t chunks, int64_t columns, const A *partial, int64_t stride, O *out,
                            bool accumulate) {
    for_each_vector<A>(columns, [&](int64_t j, int n) {
        Vec<A> sum = {};
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
            sum += load_some(partial + chunk * stride + j, n);
        if (accumulate)
            sum += load_some(out + j, n);
        store_some(out + j, sum, n);
    });
}

NF_INLINE int64_t integer_at(const Integers &integers, int64_t i) {
    return integers.wide ? static_cast<const int64_t *>(integers.data)[i]
                         : static_cast<const int32_t *>(integers.data)[i];
}

#define NF_FILL(entry, kernel)                                                                                         \
    table.entry[int(DType::f32)] = kernel<float>;                                                                      \
    table.entry[int(DType::f64)] = kernel<double>;                                                                     \
    table.entry[int(DType::f16)] = kernel<f16>;                                                                        \
    table.entry[int(DType::bf16)] = kernel<bf16>

} // namespace nf::NUMFORMER_LEVEL
