// Layer norm and RMS norm of rows of n elements, as csrc/kernels/norm.cpp has them:
//
//   h = (x - mean) rstd, y = h weight + bias,  rstd = 1 / sqrt(mean((x - mean)^2) + eps);  RMS norm: mean = 0
//   g = dy weight, dx = rstd (g - mean(g) - h mean(g h)) + residual;  RMS norm: without mean(g)
//   dweight = sum over rows of dy h, dbias = sum over rows of dy
//
// A row belongs to a warp, or to the block where it is long. It is read from global memory three times, of which the
// caches serve two: 8 rows of 1024 floats are 32 KiB of the 128 KiB and more of the first level.
#pragma once
#include "cuda/device.hpp"
#include "cuda/kernels/rows.hpp"

namespace nf::cuda {

struct NormArgs {
    const void *x, *weight, *bias, *dy, *residual; // weight, bias, residual may be null; dy: backward only
    void *out;                                     // y or dx
    void *mean, *rstd;                             // of the forward either may be null, of the backward mean
    int64_t rows, columns;
    double eps;
    bool centred;
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
