#include "cuda/kernels/elementwise.hpp"

#include "cuda/launchers/column_sums.hpp"

namespace nf::cuda {

void activation(const Array &out, const Array &x, int which, Stream stream) {
    const ActivationArgs args{x.data, nullptr, out.data, x.size(), Activation(which), are_aligned(x.data, out.data)};
    with_float(x.dtype, [&](auto t) {
        launch("activation", blocks_for(args.count, kElementThreads * kPack<decltype(t)>), kElementThreads, 0, stream,
               cuda::activation<decltype(t)>, args);
    });
}

void activation_backward(const Array &dx, const Array &dy, const Array &x, int which, Stream stream) {
    const ActivationArgs args{x.data,   dy.data,           dx.data,
                              x.size(), Activation(which), are_aligned(x.data, dy.data, dx.data)};
    with_float(x.dtype, [&](auto t) {
        launch("activation_backward", blocks_for(args.count, kElementThreads * kPack<decltype(t)>), kElementThreads, 0,
               stream, cuda::activation_backward<decltype(t)>, args);
    });
}

void add(const Array &out, const Array &a, const Array &b, Stream stream) {
    const AddArgs args{a.data, b.data, out.data, a.size(), b.size()};
    with_wide(a.dtype, b.dtype, [&](auto t, auto w) {
        launch("add", blocks_for(args.count, kElementThreads), kElementThreads, 0, stream,
               cuda::add<decltype(t), decltype(w)>, args);
    });
}

void cast(const Array &out, const Array &x, double scale, Stream stream) {
    const CastArgs args{x.data, out.data, x.size(), scale, are_aligned(x.data, out.data)};
    with_float(x.dtype, [&](auto t) {
        with_float(out.dtype, [&](auto o) {
            constexpr int kCount = kCastPack<decltype(t), decltype(o)>;
            launch("cast", blocks_for(args.count, kElementThreads * kCount), kElementThreads, 0, stream,
                   cuda::cast<decltype(t), decltype(o)>, args);
        });
    });
}

void sum_rows(const Array &out, const Array &x, bool accumulate, const Allocate &allocate, Stream stream) {
    with_wide(x.dtype, out.dtype, [&](auto t, auto w) {
        typedef decltype(t) T;
        typedef Acc<T> A;
        const int64_t rows = x.rows(), columns = x.columns(), chunks = ceil_div(rows, kMatrixRows);
        if (columns == 0 || columns % kPack<T> != 0 || rows == 0) {
            const ElementTerm<T> term{static_cast<const T *>(x.data), x.row()};
            sum_over_rows<A, decltype(w)>("sum_rows", term, out.data, rows, columns, accumulate, allocate, stream);
            return;
        }
        // Rows of one chunk (positions, over the samples of a batch) are added up where the sum belongs.
        const bool at_once = chunks == 1 && !accumulate && std::is_same_v<A, decltype(w)>;
        A *partial = static_cast<A *>(at_once ? out.data : allocate(chunks * columns * int64_t(sizeof(A))));
        const MatrixSumArgs<T> args{static_cast<const T *>(x.data),
                                    partial,
                                    rows,
                                    columns,
                                    x.row(),
                                    are_aligned(x.data) && x.row() % kPack<T> == 0};
        constexpr int64_t kStrip = kWarp * kPack<T>;
        launch("sum_rows", chunks * ceil_div(columns, kStrip), kRowThreads, shared_bytes<A>(kRowWarps * kStrip), stream,
               sum_matrix<T>, args);
        if (!at_once)
            add_partials_to<A, decltype(w)>("sum_rows", {{partial, out.data}}, chunks, columns, accumulate, stream);
    });
}

void softmax(const Array &out, const Array &x, Stream stream) {
    const SoftmaxArgs args{x.data, nullptr, out.data, x.rows(), x.columns()};
    with_float(x.dtype, [&](auto t) {
        with_length(args.columns, [&](auto is_long) {
            constexpr bool kLong = decltype(is_long)::value;
            launch("softmax", row_blocks(args.rows, kLong), kRowThreads, row_shared<Acc<decltype(t)>, kLong>(), stream,
                   cuda::softmax<decltype(t), kLong>, args);
        });
    });
}

void softmax_backward(const Array &dx, const Array &dy, const Array &y, Stream stream) {
    const SoftmaxArgs args{y.data, dy.data, dx.data, y.rows(), y.columns()};
    with_float(y.dtype, [&](auto t) {
        with_length(args.columns, [&](auto is_long) {
            constexpr bool kLong = decltype(is_long)::value;
            launch("softmax_backward", row_blocks(args.rows, kLong), kRowThreads, row_shared<Acc<decltype(t)>, kLong>(),
                   stream, cuda::softmax_backward<decltype(t), kLong>, args);
        });
    });
}

void dropout(const Array &out, const Array &x, const MaybeArray &residual, const DropoutKey &key, int64_t samples,
             const MaybeArray &starts, Stream stream) {
    DropoutArgs args{};
    args.x = x.data;
    args.residual = data_of(residual);
    args.out = out.data;
    args.dropout = {key.seed, key.layer, key.step, key.sample, dropout_limit(key.p), dropout_factor(key.p)};
    args.samples = samples;
    args.elements = x.size();
    args.starts = static_cast<const int64_t *>(data_of(starts));
    with_float(x.dtype, [&](auto t) {
        launch("dropout", blocks_for(args.elements, kElementThreads), kElementThreads, 0, stream,
               cuda::dropout<decltype(t)>, args);
    });
}

} // namespace nf::cuda
