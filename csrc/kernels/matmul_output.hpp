// Where the sums of a matrix product go: bias, activation, residual, pre-activation and the type of the output. Nothing
// else knows of these.
#pragma once
#include "kernels/activation.hpp"
#include "kernels/tile.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// One matrix product of the batch.
template <class T> struct Product {
    const T *a, *b;
    char *out, *preactivation;
    const char *residual;
};

template <class A, class O>
void finish_rows(const MatmulArgs &args, const A *column_scale, const A *bias, const A *sums, int64_t sums_row,
                 int64_t rows, int64_t columns, O *out, const O *residual, O *preactivation) {
    const Vec<A> scale = broadcast(A(args.scale));
    for (int64_t i = 0; i < rows; ++i) {
        O *to = out + i * args.out_row;
        const O *more = residual ? residual + i * args.residual_row : nullptr;
        for_each_vector<A>(columns, [&](int64_t j, int n) {
            Vec<A> y = load_some(sums + i * sums_row + j, n) * scale;
            if (column_scale)
                y *= load_some(column_scale + j, n);
            if (bias)
                y += load_some(bias + j, n);
            if (preactivation)
                store_some(preactivation + i * args.preactivation_row + j, y, n);
            y = activate<A>(args.activation, y);
            if (more)
                y += load_some(more + j, n);
            if (args.accumulate)
                y += load_some(to + j, n);
            store_some(to + j, y, n);
        });
    }
}

// Sums of rows [i0, i0 + rows) x columns [j0, j0 + columns) are complete: write the output.
template <class A, class T>
void finish(const MatmulArgs &args, const Product<T> &product, const A *bias, const A *sums, int64_t sums_row,
            int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    auto write = [&](auto type) {
        typedef decltype(type) O;
        O *out = reinterpret_cast<O *>(product.out) + i0 * args.out_row + j0;
        const O *residual = reinterpret_cast<const O *>(product.residual);
        O *preactivation = reinterpret_cast<O *>(product.preactivation);
        const A *column_scale = nullptr;
        if constexpr (sizeof(A) == 4)
            column_scale = args.column_scale ? args.column_scale + j0 : nullptr;
        finish_rows<A, O>(args, column_scale, bias ? bias + j0 : nullptr, sums, sums_row, rows, columns, out,
                          residual ? residual + i0 * args.residual_row + j0 : nullptr,
                          preactivation ? preactivation + i0 * args.preactivation_row + j0 : nullptr);
    };
    if constexpr (sizeof(A) == 8) { // float64 in, float64 out
        write(double{});
    } else {
        switch (args.out_type) {
        case DType::f16:
            return write(f16{});
        case DType::bf16:
            return write(bf16{});
        default:
            return write(float{});
        }
    }
}

// The output, and the residual (null where there is none), from row i and column j on.
template <class T>
NF_INLINE RowsInMemory output_from(const MatmulArgs &args, const Product<T> &product, int64_t i, int64_t j) {
    const int64_t size = kItemSize[static_cast<int>(args.out_type)];
    return {product.out + (i * args.out_row + j) * size, args.out_row * size};
}
template <class T>
NF_INLINE RowsInMemory residual_from(const MatmulArgs &args, const Product<T> &product, int64_t i, int64_t j) {
    const int64_t size = kItemSize[static_cast<int>(args.out_type)];
    return {product.residual ? product.residual + (i * args.residual_row + j) * size : nullptr,
            args.residual_row * size};
}

// Fetch the lines of the output and the residual that finish() will touch, ahead of the tile whose sums it finishes.
template <class T>
void fetch_output(const MatmulArgs &args, const Product<T> &product, int64_t i0, int64_t rows, int64_t j0,
                  int64_t columns) {
    const int64_t bytes = columns * kItemSize[static_cast<int>(args.out_type)];
    auto fetch = [&](const RowsInMemory &of, int64_t i, auto write) __attribute__((always_inline)) {
        const char *from = static_cast<const char *>(of.first) + i * of.row_bytes;
        const char *last = from + bytes - 1; // rows need not begin with a line
        for (; from <= last; from += 64)
            __builtin_prefetch(from, decltype(write)::value);
        __builtin_prefetch(last, decltype(write)::value);
    };
    const RowsInMemory out = output_from(args, product, i0, j0), residual = residual_from(args, product, i0, j0);
    for (int64_t i = 0; i < rows; ++i) {
        fetch(out, i, std::integral_constant<int, 1>{});
        if (residual.first)
            fetch(residual, i, std::integral_constant<int, 0>{});
    }
}

// to (rows x columns) = or += sums.
template <class A>
void put(const A *sums, int64_t sums_row, int64_t rows, int64_t columns, A *to, int64_t to_row, bool add) {
    for (int64_t r = 0; r < rows; ++r)
        for_each_vector<A>(columns, [&](int64_t c, int n) {
            const Vec<A> sum = load_some(sums + r * sums_row + c, n);
            A *p = to + r * to_row + c;
            store_some(p, add ? load_some(p, n) + sum : sum, n);
        });
}

// What the tasks of one product share.
template <class E, class T> struct Plan {
    const MatmulArgs &args;
    const Product<T> &product;
    const Acc<E> *bias;
    bool direct; // nothing but sums is wanted, in their own type: tiles are written where they belong
};

template <class A> NF_INLINE bool writes_directly(const MatmulArgs &args) {
    const bool same_type = args.out_type == (sizeof(A) == 8 ? DType::f64 : DType::f32);
    return same_type && args.scale == 1 && !args.column_scale && !args.bias && !args.residual && !args.preactivation &&
           args.activation == Activation::none;
}

} // namespace
} // namespace nf::NUMFORMER_LEVEL
