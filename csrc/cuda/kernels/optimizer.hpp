// Updates of many arrays in one launch, and the norm of all gradients. The rules and their constants are those of
// csrc/kernels/optimizer.cpp; Lion's is that of python/numformer/optim/lion.py. A block takes a chunk of one array;
// which one, it finds in the arguments.
#pragma once
#include "cuda/device.hpp"

namespace nf::cuda {

constexpr int kUpdateThreads = 256;
constexpr int64_t kUpdateChunk = 16384;
constexpr int kMostArrays = 56; // their arguments fit in the 4 KiB that a launch may have

enum class Rule : int { sgd, adam, adagrad, rmsprop, lion };

template <class T> struct UpdateArgs {
    int arrays;
    int first_chunk[kMostArrays + 1];
    int64_t sizes[kMostArrays];
    T *values[kMostArrays];
    const T *grads[kMostArrays];
    T *first[kMostArrays], *second[kMostArrays], *third[kMostArrays]; // what the rule remembers; null where it has none
    void *copies[kMostArrays];                                        // the new values in 16 bits, or null
    bool copies_are_bf16, nesterov, has_second, has_third;
    double grad_scale;
    const double *norm; // of the gradients, before grad_scale; null: no clipping
    double max_norm;
    T c[9];
};

template <class Args> NF_DEVICE int array_of_chunk(const Args &args, int64_t chunk) {
    int array = 0;
    while (array + 1 < args.arrays && args.first_chunk[array + 1] <= chunk)
        ++array;
    return array;
}

// What gradients are multiplied by; false where their norm is not finite: then nothing is to be changed.
NF_DEVICE bool clip(double grad_scale, const double *norm, double max_norm, double &scale) {
    scale = grad_scale;
    if (!norm)
        return true;
    const double scaled = grad_scale * *norm, ratio = max_norm / (scaled + 1e-6);
    scale *= ratio < 1 ? ratio : 1;
    return finite(scaled);
}

template <class T> NF_DEVICE void store_copy(void *copy, bool is_bf16, int64_t i, T value) {
    if (!copy)
        return;
    if (is_bf16)
        store(static_cast<bf16 *>(copy), i, value);
    else
        store(static_cast<f16 *>(copy), i, value);
}

template <class T, Rule kRule> NF_KERNEL(kUpdateThreads) update(NF_ARGS UpdateArgs<T> args) {
    double wide_scale;
    if (!clip(args.grad_scale, args.norm, args.max_norm, wide_scale))
        return;
    const T scale = T(wide_scale);
    const int array = array_of_chunk(args, block());
    const int64_t begin = (block() - args.first_chunk[array]) * kUpdateChunk;
    const int64_t end = smaller_of(args.sizes[array], begin + kUpdateChunk);
    T *values = args.values[array], *first = args.first[array], *second = args.second[array],
      *third = args.third[array];
    const T *grads = args.grads[array];
    const T *c = args.c;
    for (int64_t i = begin + thread(); i < end; i += kUpdateThreads) {
        const T w = values[i];
        T g = grads[i] * scale, now;
        if constexpr (kRule == Rule::sgd) { // c = {lr, momentum, decay}
            if (c[2] != 0)
                g += c[2] * w;
            if (first) {
                const T u = first[i] * c[1] + g;
                first[i] = u;
                g = args.nesterov ? g + u * c[1] : u;
            }
            now = w - g * c[0];
        } else if constexpr (kRule == Rule::adam) { // c = {b1, 1 - b1, b2, 1 - b2, keep, rate, root, eps, decay}
            if (c[8] != 0)
                g += c[8] * w;
            const T m = first[i] * c[0] + g * c[1], v = second[i] * c[2] + g * g * c[3];
            first[i] = m;
            second[i] = v;
            now = w * c[4] - m * c[5] / (sqrt_of(v) * c[6] + c[7]);
        } else if constexpr (kRule == Rule::adagrad) { // c = {lr, eps, decay}
            if (c[2] != 0)
                g += c[2] * w;
            const T s = first[i] + g * g;
            first[i] = s;
            now = w - g * c[0] / (sqrt_of(s) + c[1]);
        } else if constexpr (kRule == Rule::lion) { // c = {lr, 1 - b1, 1 - b2, decay}
            const T m = first[i], u = m + (g - m) * c[1];
            first[i] = m + (g - m) * c[2];
            const T sign = u > 0 ? T(1) : u < 0 ? T(-1) : u; // keeps a NaN
            now = w - (sign + w * c[3]) * c[0];
        } else { // c = {lr, a, 1 - a, eps, decay, momentum}
            if (c[4] != 0)
                g += c[4] * w;
            T s = first[i] * c[1] + g * g * c[2];
            first[i] = s;
            if (second) {
                const T m = second[i] * c[1] + g * c[2];
                second[i] = m;
                s -= m * m;
                s = s < 0 ? T(0) : s; // keeps a NaN
            }
            T step = g / (sqrt_of(s) + c[3]);
            if (third) {
                step = third[i] * c[5] + step;
                third[i] = step;
            }
            now = w - step * c[0];
        }
        values[i] = now;
        store_copy(args.copies[array], args.copies_are_bf16, i, now);
    }
}

struct SquaresArgs {
    int arrays;
    int first_chunk[kMostArrays + 1];
    int64_t sizes[kMostArrays];
    const void *data[kMostArrays];
    double *partial; // one a chunk
};
template <class T> NF_KERNEL(kUpdateThreads) sum_of_squares(NF_ARGS SquaresArgs args) {
    Shared<double> scratch = SharedMemory().take<double>(kUpdateThreads / kWarp);
    const int array = array_of_chunk(args, block());
    const int64_t begin = (block() - args.first_chunk[array]) * kUpdateChunk;
    const int64_t end = smaller_of(args.sizes[array], begin + kUpdateChunk);
    double sum = 0;
    for (int64_t i = begin + thread(); i < end; i += kUpdateThreads) {
        const double x = double(load(static_cast<const T *>(args.data[array]), i));
        sum += x * x;
    }
    sum = block_sum(sum, scratch);
    if (thread() == 0)
        args.partial[block()] = sum;
}

struct RootArgs {
    const double *partial;
    int64_t count;
    double *out;
};
NF_KERNEL(kUpdateThreads) root_of_sum(NF_ARGS RootArgs args) {
    Shared<double> scratch = SharedMemory().take<double>(kUpdateThreads / kWarp);
    double sum = 0;
    for (int64_t i = thread(); i < args.count; i += kUpdateThreads)
        sum += args.partial[i];
    sum = block_sum(sum, scratch);
    if (thread() == 0)
        *args.out = sqrt_of(sum);
}

} // namespace nf::cuda
