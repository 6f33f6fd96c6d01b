// Adafactor (N. Shazeer and M. Stern, 2018), one parameter at a time: a stack of matrices of `height` rows and `width`
// columns, or a vector, which is one column and keeps the squares themselves. The rule is that of
// python/numformer/optim/adafactor.py; with g = scale grad, b = 1 - share, and sums in double and in a fixed order:
//
//   1. rows += share (mean of g^2 over the columns - rows);  columns likewise, over the rows
//   2. V = rows columns / mean(rows), at least eps1^2 (a vector: rows);  u = g / sqrt(V)
//   3. factor = rate max(eps2, rms(value)) / max(1, rms(u) / d)
//   4. value = keep value - factor u
#pragma once
#include "cuda/kernels/optimizer.hpp"
#include "cuda/kernels/rows.hpp"

namespace nf::cuda {

template <class T> struct AdafactorArgs {
    T *value;
    const T *grad;
    T *rows, *columns; // (matrices, height), (matrices, width) or null
    void *copy;        // the new values in 16 bits, or null
    bool copy_is_bf16;
    int64_t matrices, height, width;
    double share, rate, keep, eps1, eps2, d;
    double grad_scale, max_norm;
    const double *norm; // as in UpdateArgs
    double *means;      // scratch: of the rows of each matrix
    double *sums;       // scratch: of value^2 and u^2, two a chunk, then the factor
};

// rows of 1., a warp each.
template <class T> NF_KERNEL(kUpdateThreads) adafactor_rows(NF_ARGS AdafactorArgs<T> args) {
    double scale;
    if (!clip(args.grad_scale, args.norm, args.max_norm, scale))
        return;
    constexpr int kWarps = kUpdateThreads / kWarp;
    for (int64_t row = block() * kWarps + warp(); row < args.matrices * args.height; row += blocks() * kWarps) {
        double sum = 0;
        for (int64_t j = lane(); j < args.width; j += kWarp) {
            const double g = double(args.grad[row * args.width + j] * T(scale));
            sum += g * g;
        }
        sum = warp_sum(sum);
        if (lane() == 0)
            args.rows[row] += T(args.share) * (T(sum / double(args.width)) - args.rows[row]);
    }
}

// The squares of one matrix, to be summed over its rows, and what becomes of the sums.
template <class T> struct SquareTerm {
    const T *grad;
    double grad_scale, max_norm;
    const double *norm;
    NF_DEVICE double operator()(int64_t row, int64_t column, int64_t columns) const {
        double scale;
        clip(grad_scale, norm, max_norm, scale);
        const double g = double(grad[row * columns + column] * T(scale));
        return g * g;
    }
};
template <class T> struct AdafactorColumnsArgs {
    AdafactorArgs<T> all;
    const double *sums; // (width)
    int64_t matrix;
};
template <class T> NF_KERNEL(kUpdateThreads) adafactor_columns(NF_ARGS AdafactorColumnsArgs<T> args) {
    double scale;
    if (!clip(args.all.grad_scale, args.all.norm, args.all.max_norm, scale))
        return;
    T *columns = args.all.columns + args.matrix * args.all.width;
    for (int64_t j = block() * kUpdateThreads + thread(); j < args.all.width; j += blocks() * kUpdateThreads)
        columns[j] += T(args.all.share) * (T(args.sums[j] / double(args.all.height)) - columns[j]);
}

// The mean of the rows of a matrix, a block each; at least eps1.
template <class T> NF_KERNEL(kUpdateThreads) adafactor_means(NF_ARGS AdafactorArgs<T> args) {
    Shared<double> scratch = SharedMemory().take<double>(kUpdateThreads / kWarp);
    double sum = 0;
    for (int64_t i = thread(); i < args.height; i += kUpdateThreads)
        sum += double(args.rows[block() * args.height + i]);
    sum = block_sum(sum, scratch) / double(args.height);
    if (thread() == 0)
        args.means[block()] = sum < args.eps1 ? args.eps1 : sum;
}

// u of element i.
template <class T> NF_DEVICE T adafactor_step(const AdafactorArgs<T> &args, int64_t i, T scale) {
    const int64_t row = i / args.width;
    T square = args.rows[row];
    if (args.columns) {
        const int64_t matrix = row / args.height;
        square = square / T(args.means[matrix]) * args.columns[matrix * args.width + i % args.width];
    }
    const T least = T(args.eps1 * args.eps1);
    square = square < least ? least : square; // keeps a NaN
    return args.grad[i] / sqrt_of(square) * scale;
}

template <class T> NF_KERNEL(kUpdateThreads) adafactor_sums(NF_ARGS AdafactorArgs<T> args) {
    SharedMemory memory;
    Shared<double> scratch = memory.take<double>(kUpdateThreads / kWarp);
    double scale;
    clip(args.grad_scale, args.norm, args.max_norm, scale);
    const int64_t begin = block() * kUpdateChunk,
                  end = smaller_of(args.matrices * args.height * args.width, begin + kUpdateChunk);
    double values = 0, steps = 0;
    for (int64_t i = begin + thread(); i < end; i += kUpdateThreads) {
        const double value = double(args.value[i]), step = double(adafactor_step(args, i, T(scale)));
        values += value * value;
        steps += step * step;
    }
    values = block_sum(values, scratch);
    steps = block_sum(steps, scratch);
    if (thread() == 0) {
        args.sums[2 * block()] = values;
        args.sums[2 * block() + 1] = steps;
    }
}

// The factor of 3., behind the sums; one block.
template <class T> NF_KERNEL(kUpdateThreads) adafactor_factor(NF_ARGS AdafactorArgs<T> args) {
    Shared<double> scratch = SharedMemory().take<double>(kUpdateThreads / kWarp);
    const int64_t count = args.matrices * args.height * args.width, chunks = ceil_div(count, kUpdateChunk);
    double values = 0, steps = 0;
    for (int64_t i = thread(); i < chunks; i += kUpdateThreads) {
        values += args.sums[2 * i];
        steps += args.sums[2 * i + 1];
    }
    const double size = sqrt_of(block_sum(values, scratch) / double(count)),
                 spread = sqrt_of(block_sum(steps, scratch) / double(count)) / args.d;
    if (thread() == 0)
        args.sums[2 * chunks] = args.rate * (size < args.eps2 ? args.eps2 : size) / (spread < 1 ? 1 : spread);
}

template <class T> NF_KERNEL(kUpdateThreads) adafactor_apply(NF_ARGS AdafactorArgs<T> args) {
    double scale;
    if (!clip(args.grad_scale, args.norm, args.max_norm, scale))
        return;
    const int64_t count = args.matrices * args.height * args.width;
    const T factor = T(args.sums[2 * ceil_div(count, kUpdateChunk)]);
    for (int64_t i = block() * kUpdateThreads + thread(); i < count; i += blocks() * kUpdateThreads) {
        const T now = args.value[i] * T(args.keep) - adafactor_step(args, i, T(scale)) * factor;
        args.value[i] = now;
        store_copy(args.copy, args.copy_is_bf16, i, now);
    }
}

} // namespace nf::cuda
