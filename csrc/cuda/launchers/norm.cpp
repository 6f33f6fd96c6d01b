#include "cuda/kernels/norm.hpp"

#include "cuda/launchers/column_sums.hpp"

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

// f(int_constant) with the packs of a lane that rows of so many elements need, at most kMost: more of them are not kept
// in registers. False where rows are longer, or not of whole packs.
template <class T, int kMost, class F> bool with_packs(int64_t columns, F f) {
    if (columns % kPack<T> != 0)
        return false;
    const int64_t packs = ceil_div(columns, kWarp * kPack<T>);
    if (packs <= 2)
        f(std::integral_constant<int, 2>());
    else if (packs == 3)
        f(std::integral_constant<int, 3>());
    else if (packs == 4)
        f(std::integral_constant<int, 4>());
    else if (kMost > 4 && packs <= 6)
        f(std::integral_constant<int, (kMost > 4 ? 6 : 4)>());
    else if (kMost > 4 && packs <= 8)
        f(std::integral_constant<int, (kMost > 4 ? 8 : 4)>());
    else
        return false;
    return true;
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
    args.is_aligned = are_aligned(args.x, args.out, args.weight, args.bias);
    with_wide(in.x.dtype, weight_type(in, {}, {}), [&](auto t, auto w) {
        if constexpr (sizeof(t) <= 4) {
            if (with_packs<decltype(t), 8>(args.columns, [&](auto packs) {
                    launch(in.operation, row_blocks(args.rows, false), kRowThreads, 0, stream,
                           norm_of_packs<decltype(t), decltype(w), decltype(packs)::value>, args);
                }))
                return;
        }
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
    args.is_aligned = are_aligned(args.x, args.out, args.weight, args.dy, args.residual);
    with_wide(in.x.dtype, weight_type(in, dweight, dbias), [&](auto t, auto w) {
        typedef decltype(t) T;
        typedef decltype(w) W;
        typedef Acc<T> A;
        if constexpr (sizeof(T) <= 4) { // of a double, sums and all would not be kept in registers
            const int64_t blocks = ceil_div(args.rows, kNormRows), partial = blocks * args.columns;
            NormBackwardArgs<A> all{args, nullptr, nullptr};
            if (with_packs<T, sizeof(T) == 4 ? 8 : 4>(args.columns, [&](auto packs) {
                    if (dweight)
                        all.dweight = static_cast<A *>(allocate(partial * int64_t(sizeof(A))));
                    if (dbias)
                        all.dbias = static_cast<A *>(allocate(partial * int64_t(sizeof(A))));
                    launch(in.operation, blocks, kRowThreads, shared_bytes<A>(kRowWarps * args.columns), stream,
                           norm_backward_of_packs<T, W, decltype(packs)::value>, all);
                })) {
                add_partials_to<A, W>(in.operation, {{all.dweight, data_of(dweight)}, {all.dbias, data_of(dbias)}},
                                      blocks, args.columns, false, stream);
                return;
            }
        }
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
