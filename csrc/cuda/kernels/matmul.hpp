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
    const int64_t count = args.rows * args.columns;
    const bool small = count < int64_t(1) << 31; // a division of 64 bits takes several times as long
    for (int64_t i = block() * kElementThreads + thread(); i < count; i += blocks() * kElementThreads) {
        const int64_t row = small ? int64_t(uint32_t(i) / uint32_t(args.columns)) : i / args.columns;
        const int64_t column = i - row * args.columns, at = row * args.out_row + column;
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
