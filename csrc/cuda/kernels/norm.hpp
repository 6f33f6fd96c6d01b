// Layer norm and RMS norm of rows of n elements, as csrc/kernels/norm.cpp has them:
//
//   h = (x - mean) rstd, y = h weight + bias,  rstd = 1 / sqrt(mean((x - mean)^2) + eps);  RMS norm: mean = 0
//   g = dy weight, dx = rstd (g - mean(g) - h mean(g h)) + residual;  RMS norm: without mean(g)
//   dweight = sum over rows of dy h, dbias = sum over rows of dy
//
// A row belongs to a warp, or to the block where it is long. Rows that are not, of a multiple of 16 bytes, are read
// once and kept in registers; the others are read from global memory three times, of which the caches serve two.
#pragma once
#include "cuda/kernels/column_sums.hpp"

namespace nf::cuda {

struct NormArgs {
    const void *x, *weight, *bias, *dy, *residual; // weight, bias, residual may be null; dy: backward only
    void *out;                                     // y or dx
    void *mean, *rstd;                             // of the forward either may be null, of the backward mean
    int64_t rows, columns;
    double eps;
    bool centred, is_aligned;
};

template <class T, class W, bool kLong> NF_KERNEL(kRowThreads) norm(NF_ARGS NormArgs args) {
    typedef Acc<T> A;
    RowGroup<A, kLong> group;
    const int64_t columns = args.columns;
    const W *weight = static_cast<const W *>(args.weight), *bias = static_cast<const W *>(args.bias);
    for (int64_t row = group.first_row(); row < args.rows; row += group.row_step()) {
        const T *x = static_cast<const T *>(args.x) + row * columns;
        T *y = static_cast<T *>(args.out) + row * columns;
        A mean = 0;
        if (args.centred) {
            A part = 0;
            for (int64_t j = group.place(); j < columns; j += group.size())
                part += load(x, j);
            mean = group.sum(part) / A(columns);
        }
        A square = 0;
        for (int64_t j = group.place(); j < columns; j += group.size()) {
            const A d = load(x, j) - mean;
            square += d * d;
        }
        const A variance = group.sum(square) / A(columns);
        const A rstd = A(1 / sqrt(double(variance) + args.eps)); // one a row: double costs nothing here
        for (int64_t j = group.place(); j < columns; j += group.size()) {
            A h = (load(x, j) - mean) * rstd;
            if (weight)
                h = h * load(weight, j);
            if (bias)
                h = h + load(bias, j);
            store(y, j, h);
        }
        if (group.place() == 0) {
            if (args.mean)
                static_cast<A *>(args.mean)[row] = mean;
            if (args.rstd)
                static_cast<A *>(args.rstd)[row] = rstd;
        }
    }
}

template <class T, class W, bool kLong> NF_KERNEL(kRowThreads) norm_backward(NF_ARGS NormArgs args) {
    typedef Acc<T> A;
    RowGroup<A, kLong> group;
    const int64_t columns = args.columns;
    const W *weight = static_cast<const W *>(args.weight);
    for (int64_t row = group.first_row(); row < args.rows; row += group.row_step()) {
        const T *x = static_cast<const T *>(args.x) + row * columns,
                *dy = static_cast<const T *>(args.dy) + row * columns;
        const T *residual = args.residual ? static_cast<const T *>(args.residual) + row * columns : nullptr;
        T *dx = static_cast<T *>(args.out) + row * columns;
        const A mean = args.centred ? static_cast<const A *>(args.mean)[row] : A(0);
        const A rstd = static_cast<const A *>(args.rstd)[row];
        A sum_g = 0, sum_gh = 0;
        for (int64_t j = group.place(); j < columns; j += group.size()) {
            const A g = weight ? load(dy, j) * load(weight, j) : load(dy, j);
            sum_g += g;
            sum_gh += g * ((load(x, j) - mean) * rstd);
        }
        const A mean_g = args.centred ? group.sum(sum_g) / A(columns) : A(0);
        const A mean_gh = group.sum(sum_gh) / A(columns);
        for (int64_t j = group.place(); j < columns; j += group.size()) {
            const A g = weight ? load(dy, j) * load(weight, j) : load(dy, j);
            A gradient = (g - mean_g - (load(x, j) - mean) * rstd * mean_gh) * rstd;
            if (residual)
                gradient += load(residual, j);
            store(dx, j, gradient);
        }
    }
}

// ---- short rows: a warp's lanes have kPacks packs each, the one of a lane beside that of the next

template <class T, class W, int kPacks> NF_KERNEL(kRowThreads) norm_of_packs(NF_ARGS NormArgs args) {
    typedef Acc<T> A;
    constexpr int kCount = kPack<T>;
    const int columns = int(args.columns);
    const W *weight = static_cast<const W *>(args.weight), *bias = static_cast<const W *>(args.bias);
    for (int64_t row = block() * kRowWarps + warp(); row < args.rows; row += blocks() * kRowWarps) {
        A x[kPacks][kCount] = {};
        A part = 0;
        NF_UNROLL
        for (int p = 0; p < kPacks; ++p) {
            const int column = (p * kWarp + lane()) * kCount;
            if (column < columns)
                load_pack(static_cast<const T *>(args.x) + row * columns + column, args.is_aligned, x[p]);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                part += x[p][i];
        }
        const A mean = args.centred ? warp_sum(part) / A(columns) : A(0);
        A square = 0;
        NF_UNROLL
        for (int p = 0; p < kPacks; ++p)
            if ((p * kWarp + lane()) * kCount < columns) {
                NF_UNROLL
                for (int i = 0; i < kCount; ++i)
                    square += (x[p][i] - mean) * (x[p][i] - mean);
            }
        const A variance = warp_sum(square) / A(columns);
        const A rstd = A(1 / sqrt(double(variance) + args.eps)); // one a row: double costs nothing here
        NF_UNROLL
        for (int p = 0; p < kPacks; ++p) {
            const int column = (p * kWarp + lane()) * kCount;
            if (column >= columns)
                continue;
            A factor[kCount], y[kCount];
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                y[i] = (x[p][i] - mean) * rstd;
            if (weight) {
                load_pack(weight + column, args.is_aligned, factor);
                NF_UNROLL
                for (int i = 0; i < kCount; ++i)
                    y[i] = y[i] * factor[i];
            }
            if (bias) {
                load_pack(bias + column, args.is_aligned, factor);
                NF_UNROLL
                for (int i = 0; i < kCount; ++i)
                    y[i] = y[i] + factor[i];
            }
            store_pack(static_cast<T *>(args.out) + row * columns + column, args.is_aligned, y);
        }
        if (lane() == 0) {
            if (args.mean)
                static_cast<A *>(args.mean)[row] = mean;
            if (args.rstd)
                static_cast<A *>(args.rstd)[row] = rstd;
        }
    }
}

// dx, and what each block's rows add to dweight and dbias, which is read here anyway.
// Rows of a block, which are all that it does: 8192 rows give each of 132 multiprocessors two blocks.
constexpr int64_t kNormRows = 32;
template <class A> struct NormBackwardArgs {
    NormArgs norm;
    A *dweight, *dbias; // (blocks, columns), or null
};

template <class A, int kPacks, int kCount>
NF_DEVICE void sum_of_block(Shared<A> sums, const A (&sum)[kPacks][kCount], int columns, A *out) {
    NF_UNROLL
    for (int p = 0; p < kPacks; ++p) {
        const int column = (p * kWarp + lane()) * kCount;
        if (column < columns) {
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                sums[warp() * columns + column + i] = sum[p][i];
        }
    }
    add_warps(sums, columns, columns, out);
}

template <class T, class W, int kPacks>
NF_KERNEL_FOR(kRowThreads, (kPacks * kPack<T> <= 24 ? 2 : 1))
norm_backward_of_packs(NF_ARGS NormBackwardArgs<Acc<T>> all) {
    typedef Acc<T> A;
    constexpr int kCount = kPack<T>;
    const NormArgs &args = all.norm;
    const int columns = int(args.columns);
    const W *weight = static_cast<const W *>(args.weight);
    Shared<A> sums = SharedMemory().take<A>(kRowWarps * columns);
    A of_weight[kPacks][kCount] = {}, of_bias[kPacks][kCount] = {};
    const int64_t end = smaller_of(args.rows, (block() + 1) * kNormRows);
    for (int64_t row = block() * kNormRows + warp(); row < end; row += kRowWarps) {
        const int64_t begin = row * columns;
        const A mean = args.centred ? static_cast<const A *>(args.mean)[row] : A(0);
        const A rstd = static_cast<const A *>(args.rstd)[row];
        A h[kPacks][kCount] = {}, g[kPacks][kCount] = {};
        A sum_g = 0, sum_gh = 0;
        NF_UNROLL
        for (int p = 0; p < kPacks; ++p) {
            const int column = (p * kWarp + lane()) * kCount;
            if (column >= columns)
                continue;
            load_pack(static_cast<const T *>(args.x) + begin + column, args.is_aligned, h[p]);
            load_pack(static_cast<const T *>(args.dy) + begin + column, args.is_aligned, g[p]);
            A factor[kCount];
            if (weight)
                load_pack(weight + column, args.is_aligned, factor);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i) {
                h[p][i] = (h[p][i] - mean) * rstd;
                of_weight[p][i] += g[p][i] * h[p][i];
                of_bias[p][i] += g[p][i];
                if (weight)
                    g[p][i] = g[p][i] * factor[i];
                sum_g += g[p][i];
                sum_gh += g[p][i] * h[p][i];
            }
        }
        const A mean_g = args.centred ? warp_sum(sum_g) / A(columns) : A(0);
        const A mean_gh = warp_sum(sum_gh) / A(columns);
        NF_UNROLL
        for (int p = 0; p < kPacks; ++p) {
            const int column = (p * kWarp + lane()) * kCount;
            if (column >= columns)
                continue;
            A more[kCount] = {};
            if (args.residual)
                load_pack(static_cast<const T *>(args.residual) + begin + column, args.is_aligned, more);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                more[i] = (g[p][i] - mean_g - h[p][i] * mean_gh) * rstd + more[i];
            store_pack(static_cast<T *>(args.out) + begin + column, args.is_aligned, more);
        }
    }
    if (all.dweight)
        sum_of_block(sums, of_weight, columns, all.dweight + block() * columns);
    if (all.dbias)
        sum_of_block(sums, of_bias, columns, all.dbias + block() * columns);
}

// What is added up over rows for dweight.
template <class T> struct NormWeightTerm {
    const T *x, *dy;
    const Acc<T> *mean, *rstd; // mean may be null
    NF_DEVICE Acc<T> operator()(int64_t row, int64_t column, int64_t columns) const {
        const Acc<T> centre = mean ? mean[row] : Acc<T>(0);
        return load(dy, row * columns + column) * ((load(x, row * columns + column) - centre) * rstd[row]);
    }
};

} // namespace nf::cuda
