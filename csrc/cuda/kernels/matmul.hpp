// What a product's library does not do in the same pass: out = activation(sums + bias) + residual (+ out), sums being
// scaled.
#pragma once
#include "cuda/kernels/activation.hpp"

namespace nf::cuda {

struct FinishArgs {
    const void *sums; // (rows, columns) in C order, of the type of the sums
    const void *bias; // (columns,), or null
    bool wide_bias;   // of the type of the sums, else of O
    const void *residual;
    void *out, *preactivation; // residual and preactivation may be null
    int64_t residual_row, out_row, preactivation_row;
    int64_t rows, columns;
    Activation activation;
    bool accumulate;
};

// O: of out, residual and preactivation. B: of a bias that is not wide.
template <class A, class O, class B> NF_KERNEL(kElementThreads) finish_product(NF_ARGS FinishArgs args) {
    O *out = static_cast<O *>(args.out), *preactivation = static_cast<O *>(args.preactivation);
    const O *residual = static_cast<const O *>(args.residual);
    for (int64_t i = block() * kElementThreads + thread(); i < args.rows * args.columns;
         i += blocks() * kElementThreads) {
        const int64_t row = i / args.columns, column = i % args.columns, at = row * args.out_row + column;
        A y = static_cast<const A *>(args.sums)[i];
        if (args.bias)
            y += args.wide_bias ? static_cast<const A *>(args.bias)[column]
                                : A(load(static_cast<const B *>(args.bias), column));
        if (preactivation)
            store(preactivation, row * args.preactivation_row + column, y);
        y = activate(args.activation, y);
        if (residual)
            y += A(load(residual, row * args.residual_row + column));
        if (args.accumulate)
            y += A(load(out, at));
        store(out, at, y);
    }
}

} // namespace nf::cuda
