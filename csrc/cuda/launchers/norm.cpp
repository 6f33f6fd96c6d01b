#include "cuda/kernels/norm.hpp"

#include "cuda/launchers/grids.hpp"

namespace nf::cuda {
namespace {

NormArgs norm_args(const NormInputs &in, const Array &out, double eps) {
    NormArgs args{};
    args.x = in.x.data;
    args.weight = data_of(in.weight);
    args.bias = data_of(in.bias);
    args.out = out.data;
    args.rows = in.x.rows();
    args.columns = in.x.columns();
    args.eps = eps;
    args.centred = in.centred;
    return args;
}

DType weight_type(const NormInputs &in, const MaybeArray &dweight, const MaybeArray &dbias) {
    for (const MaybeArray *array : {&in.weight, &in.bias, &dweight, &dbias})
        if (*array)
            return (*array)->dtype;
    return in.x.dtype;
}

} // namespace

void norm(const NormInputs &in, const Array &out, const MaybeArray &mean, const MaybeArray &rstd, double eps,
          Stream stream) {
    NormArgs args = norm_args(in, out, eps);
    args.mean = data_of(mean);
    args.rstd = data_of(rstd);
    with_wide(in.x.dtype, weight_type(in, {}, {}), [&](auto t, auto w) {
        with_length(args.columns, [&](auto is_long) {
            typedef decltype(t) T;
            constexpr bool kLong = decltype(is_long)::value;
            launch(in.operation, row_blocks(args.rows, kLong), kRowThreads, row_shared<Acc<T>, kLong>(), stream,
                   cuda::norm<T, decltype(w), kLong>, args);
        });
    });
}

void norm_backward(const NormInputs &in, const Array &dy, const MaybeArray &mean, const Array &rstd,
                   const MaybeArray &residual, const Array &dx, const MaybeArray &dweight, const MaybeArray &dbias,
                   const Allocate &allocate, Stream stream) {
    NormArgs args = norm_args(in, dx, 0);
    args.dy = dy.data;
    args.mean = data_of(mean);
    args.rstd = rstd.data;
    args.residual = data_of(residual);
    with_wide(in.x.dtype, weight_type(in, dweight, dbias), [&](auto t, auto w) {
        typedef decltype(t) T;
        typedef decltype(w) W;
        typedef Acc<T> A;
        with_length(args.columns, [&](auto is_long) {
            constexpr bool kLong = decltype(is_long)::value;
            launch(in.operation, row_blocks(args.rows, kLong), kRowThreads, row_shared<A, kLong>(), stream,
                   cuda::norm_backward<T, W, kLong>, args);
        });
        const T *x = static_cast<const T *>(args.x), *gradient = static_cast<const T *>(args.dy);
        if (dweight)
            sum_over_rows<A, W>(in.operation,
                                NormWeightTerm<T>{x, gradient, in.centred ? static_cast<const A *>(args.mean) : nullptr,
                                                  static_cast<const A *>(args.rstd)},
                                dweight->data, args.rows, args.columns, false, allocate, stream);
        if (dbias)
            sum_over_rows<A, W>(in.operation, ElementTerm<T>{gradient, args.columns}, dbias->data, args.rows,
                                args.columns, false, allocate, stream);
    });
}

} // namespace nf::cuda
