// What each operation does: floating-point operations and bytes, one declared formula a kernel.
//
// An addition, multiplication, division, comparison, root, exp, erf or tanh is one operation, a fused multiply-add two.
// matmul and attention count their products only (as everybody does), other kernels every operation on an element that
// their formula needs; what is computed twice to save memory counts once, and terms a row are left out. Bytes: each
// operand once for reading and once for writing, an axis that is broadcast as the one row that it is in memory.
#pragma once
#include "core/view.hpp"
#include "runtime/attention_args.hpp"
#include "runtime/kernels.hpp"
#include "runtime/profiler.hpp"

#include <algorithm>
#include <vector>

namespace nf::ops::work {

using profiler::Work;

inline double real(int64_t n) { return static_cast<double>(n); }
inline double item(DType dtype) { return real(kItemSize[static_cast<int>(dtype)]); }
inline double statistic(DType dtype) { return dtype == DType::f64 ? 8 : 4; } // bytes of a mean, an lse, a loss
inline double bytes_of(const View &view) { return real(view.size()) * item(view.dtype); }
inline double bytes_of(const View *view) { return view ? bytes_of(*view) : 0; }
inline double integers(const Integers &ids, int64_t count) { return real(count) * (ids.wide ? 8 : 4); }

inline Work matmul(const MatmulArgs &args, DType dtype) {
    double batch = 1, a = 1, b = 1;
    for (int axis = 0; axis < args.batch_axes; ++axis) {
        const double extent = real(args.batch_shape[axis]);
        batch *= extent;
        a *= args.a_batch[axis] ? extent : 1;
        b *= args.b_batch[axis] ? extent : 1;
    }
    const double m = real(args.m), n = real(args.n), k = real(args.k);
    constexpr double kBytesStored[] = {0, 4, 8, 2, 2, 1}; // of an element, by Stored
    const double item_of_b = args.stored == Stored::none ? item(dtype) : kBytesStored[static_cast<int>(args.stored)];
    const double outputs = 1 + (args.accumulate ? 1 : 0) + (args.residual ? 1 : 0) + (args.preactivation ? 1 : 0);
    return {2 * batch * m * n * k, item(dtype) * a * m * k + item_of_b * b * k * n +
                                       outputs * batch * m * n * item(args.out_type) +
                                       (args.bias ? n * item(args.bias_type) : 0) + (args.column_scale ? 4 * n : 0)};
}

// Sum over i in [0, rows) of i + offset, held between 0 and limit.
inline double clamped_sum(double rows, double offset, double limit) {
    const double zeros = std::min(std::max(-offset, 0.0), rows);                // i + offset <= 0
    const double full = std::min(std::max(rows - (limit - offset), 0.0), rows); // i + offset >= limit
    const double between = std::max(rows - zeros - full, 0.0);                  // from i = zeros on
    return full * limit + between * (zeros + offset) + between * (between - 1) / 2;
}

// Pairs of queries and keys within the pattern: low + i <= j <= high + i. A mask forbids pairs but saves no work.
inline double pairs(const AttentionArgs &args) {
    const double queries = real(args.queries), keys = real(args.keys);
    const double below = clamped_sum(queries, real(args.high) + 1, keys) - clamped_sum(queries, real(args.low), keys);
    return std::max(below, 0.0) * real(args.batches * args.heads);
}

inline double attention_operands(const AttentionArgs &args) {
    return real(args.batches) * (real(args.heads) * real(args.queries) + real(args.kv_heads) * real(args.keys)) *
           real(args.dim + args.value_dim);
}

// The rows of relative positions that the pattern needs.
inline double relative_rows(const AttentionArgs &args, DType dtype) {
    return args.relative.r ? item(dtype) * real(args.heads * args.relative.count * args.dim) : 0;
}

// Two products a pair, and five backward: the scores again, dv, dp, dq and dk. Relative positions are one more, and two
// backward: the scores again and dq.
inline Work attention(const AttentionArgs &args, DType dtype) {
    const double lse = real(args.batches * args.heads * args.queries) * statistic(dtype);
    return {2 * pairs(args) * real((args.relative.r ? 2 : 1) * args.dim + args.value_dim),
            item(dtype) * attention_operands(args) + relative_rows(args, dtype) + lse};
}
inline Work attention_backward(const AttentionArgs &args, DType dtype) {
    const double lse = real(args.batches * args.heads * args.queries) * statistic(dtype);
    return {2 * pairs(args) * real((args.relative.r ? 5 : 3) * args.dim + 2 * args.value_dim),
            2 * item(dtype) * attention_operands(args) + relative_rows(args, dtype) + lse};
}

// Scores and dp again, for all pairs; the gradient is written once.
inline Work attention_bias_backward(const AttentionArgs &args, DType dtype, const View &dbias) {
    return {2 * pairs(args) * real((args.relative.r ? 2 : 1) * args.dim + args.value_dim),
            item(dtype) * attention_operands(args) + bytes_of(dbias)};
}
// Scores (two products) and dp again, and dr; u and v are sums over rows.
inline Work attention_relative_backward(const AttentionArgs &args, DType dtype) {
    return {2 * pairs(args) * real(3 * args.dim + args.value_dim),
            item(dtype) * attention_operands(args) + 2 * relative_rows(args, dtype)};
}
// Of all sequences of a packed batch.
template <class F> Work sum(const std::vector<AttentionArgs> &sequences, DType dtype, F of) {
    Work total{0, 0};
    for (const AttentionArgs &args : sequences) {
        const Work one = of(args, dtype);
        total.flops += one.flops;
        total.bytes += one.bytes;
    }
    return total;
}

// Maximum, difference, exp, sum, quotient; backward: product, sum, difference, product.
inline Work softmax(const View &x) { return {5 * real(x.size()), 2 * bytes_of(x)}; }
inline Work softmax_backward(const View &y) { return {4 * real(y.size()), 3 * bytes_of(y)}; }

// See kernels/norm.cpp: mean 1, variance 3 (or 2 around 0), h 2 (or 1), weight 1, bias 1.
inline Work norm(const NormArgs &args, const View &x) {
    const double each = (args.centred ? 6 : 3) + (args.weight ? 1 : 0) + (args.bias ? 1 : 0);
    const double rows = real(args.rows), parameters = (args.weight ? 1 : 0) + (args.bias ? 1 : 0);
    return {each * real(x.size()), 2 * bytes_of(x) + parameters * real(args.columns) * item(args.weight_type) +
                                       ((args.mean ? 1 : 0) + (args.rstd ? 1 : 0)) * rows * statistic(x.dtype)};
}
// h 2 (or 1), g 1 with a weight, mean(g) 1, mean(g h) 2, dx 4 (or 3); dweight 2, dbias 1, residual 1.
inline Work norm_backward(const NormArgs &args, const View &x) {
    const double each = (args.centred ? 9 : 6) + (args.weight ? 1 : 0) + (args.dweight ? 2 : 0) + (args.dbias ? 1 : 0) +
                        (args.residual ? 1 : 0);
    const double parameters = (args.weight ? 1 : 0) + (args.dweight ? 1 : 0) + (args.dbias ? 1 : 0);
    return {each * real(x.size()),
            (args.residual ? 4 : 3) * bytes_of(x) + parameters * real(args.columns) * item(args.weight_type) +
                ((args.mean ? 1 : 0) + (args.rstd ? 1 : 0)) * real(args.rows) * statistic(x.dtype)};
}

// relu: max. gelu: x 0.5 (1 + erf(x c)). gelu_tanh: x 0.5 (1 + tanh(x (c + d x x))). silu: x / (1 + exp(-x)).
inline Work activation(Activation kind, const View &x) {
    const double each[] = {0, 1, 5, 8, 3};
    return {each[static_cast<int>(kind)] * real(x.size()), 2 * bytes_of(x)};
}
// Their derivatives times dy: relu a choice; gelu Phi (4) + x phi (5), sum, product; gelu_tanh t (5), (1 + t) / 2 (2),
// x / 2 (1 - t t) (c + 3 d x x) (7), sum, product; silu s (3), s (1 + x (1 - s)) (4), product.
inline Work activation_backward(Activation kind, const View &x) {
    const double each[] = {0, 1, 11, 16, 8};
    return {each[static_cast<int>(kind)] * real(x.size()), 3 * bytes_of(x)};
}

// Maximum, difference, exp, sum; the mean of the logits with label smoothing 2 more.
inline Work cross_entropy(const CrossEntropyArgs &args, const View &logits) {
    return {(args.label_smoothing != 0 ? 6 : 4) * real(logits.size()),
            bytes_of(logits) + integers(args.targets, args.rows) + 2 * real(args.rows) * statistic(logits.dtype)};
}
// Difference, exp, product, and with label smoothing a difference; rows that are ignored are only written.
inline Work cross_entropy_backward(const CrossEntropyArgs &args, const View &logits, int64_t used) {
    return {(args.label_smoothing != 0 ? 4 : 3) * real(used) * real(args.columns),
            real(used + args.rows) * real(args.columns) * item(logits.dtype) + integers(args.targets, args.rows) +
                (real(used) + (args.dloss_stride ? real(used) : 1)) * statistic(logits.dtype)};
}

// As above, and the product of each exp with the same factor; with label smoothing a difference.
inline Work cross_entropy_gradient(const CrossEntropyGradientArgs &args, DType dtype) {
    const double elements = real(args.rows) * real(args.columns);
    return {(args.label_smoothing != 0 ? 8 : 5) * elements,
            elements * (statistic(dtype) + item(dtype)) + real(args.rows) * (8 + statistic(dtype))};
}

inline Work embedding(const EmbeddingArgs &args, const View &out) {
    return {0, 2 * bytes_of(out) + integers(args.ids, args.count)};
}
// A sum an element of dy; the table is written whole, or with `accumulate` the rows that are added to read and written.
inline Work embedding_backward(const EmbeddingArgs &args, const View &dy, const View &out) {
    const double touched = 2 * real(std::min(args.count, args.vocabulary)) * real(args.columns) * item(out.dtype);
    return {real(dy.size()),
            bytes_of(dy) + integers(args.ids, args.count) + (args.accumulate ? touched : bytes_of(out))};
}

inline Work dropout(const View &x, bool residual) {
    return {(residual ? 2 : 1) * real(x.size()), (residual ? 3 : 2) * bytes_of(x)};
}
inline Work add(const View &a, const View &b) { return {real(a.size()), 2 * bytes_of(a) + bytes_of(b)}; }
inline Work cast(const View &x, const View &out, double scale) {
    return {scale != 1 ? real(x.size()) : 0, bytes_of(x) + bytes_of(out)};
}
inline Work sum_rows(const View &x, const View &out, bool accumulate) {
    return {real(x.size()), bytes_of(x) + (accumulate ? 2 : 1) * bytes_of(out)};
}

inline Work round_sums(const RoundSumsArgs &args) {
    const double count = real(args.count);
    return {args.accumulate ? count : 0, (4 + (args.accumulate ? 4 : 2)) * count};
}

// See kernels/optimizer.cpp: g 3; momentum 2, Nesterov's form 2, step 2.
inline Work sgd(double elements, DType dtype, bool momentum, bool nesterov) {
    return {(5 + (momentum ? 2 : 0) + (nesterov ? 2 : 0)) * elements, (momentum ? 5 : 3) * elements * item(dtype)};
}
// g 3, m 3, v 4, root 3, step 4.
inline Work adam(double elements, DType dtype) { return {17 * elements, 7 * elements * item(dtype)}; }
// g 3, s 2, step 5.
inline Work adagrad(double elements, DType dtype) { return {10 * elements, 5 * elements * item(dtype)}; }
// g 3, s 4, quotient 3, step 2; centred 6 more, momentum 2 more.
inline Work rmsprop(double elements, DType dtype, bool centred, bool momentum) {
    return {(12 + (centred ? 6 : 0) + (momentum ? 2 : 0)) * elements,
            (5 + (centred ? 2 : 0) + (momentum ? 2 : 0)) * elements * item(dtype)};
}

} // namespace nf::ops::work
