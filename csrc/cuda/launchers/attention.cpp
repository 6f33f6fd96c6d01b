#include "cuda/kernels/attention_forward.hpp"
#include "cuda/kernels/attention_relative_backward.hpp"

#include "cuda/launchers/attention_args.hpp"
#include "cuda/launchers/grids.hpp"

namespace nf::cuda {
namespace {

// f(T(), integral_constant<int, D>, bool_constant): the columns that a block has at a time, and whether there are
// relative positions. D is the least that both widths fit in; what is wider goes in chunks.
template <class F> void with_width(const AttentionArgs &args, DType dtype, F f) {
    const int64_t most = std::max(args.dim, args.value_dim);
    with_float(dtype, [&](auto t) {
        if (args.relative.r.data)
            f(t, std::integral_constant<int, 64>(), std::true_type());
        else if (most <= 64)
            f(t, std::integral_constant<int, 64>(), std::false_type());
        else if (most <= 128)
            f(t, std::integral_constant<int, 128>(), std::false_type());
        else
            f(t, std::integral_constant<int, kMostColumns>(), std::false_type());
    });
}

// Bytes of `matrices` matrices of a block's rows, of two tiles, and of what relative positions need.
template <class T, int D, bool kRelative> constexpr int64_t attention_shared(int matrices) {
    typedef AttentionTile<T, D> Tile;
    return matrices * shared_bytes<T>(Tile::kRows * Tile::kStride) +
           2 * shared_bytes<T>(Tile::kColumns * Tile::kStride) + Band<T, D, kRelative>::kBytes;
}

template <class T>
void multiply_relative_biases(const AttentionInputs &in, AttentionArgs &args, const Allocate &allocate, Stream stream) {
    const int64_t keys = args.batches * args.heads * args.keys, rows = args.heads * args.relative.length;
    if (keys + rows == 0)
        return;
    Acc<T> *memory = static_cast<Acc<T> *>(allocate((keys + rows) * int64_t(sizeof(Acc<T>))));
    args.relative.of_keys = memory;
    args.relative.of_rows = memory + keys;
    launch(in.operation, blocks_for(keys + rows, kRelativeThreads / kWarp), kRelativeThreads, 0, stream,
           attention_relative_products<T>, args);
}

} // namespace

const char *attention(const AttentionInputs &in, const Array &out, const MaybeArray &lse, const Allocate &allocate,
                      Stream stream) {
    AttentionArgs args = attention_args(in);
    args.out = operand(out);
    args.lse = data_of(lse);
    if (attention_by_wgmma(in, args, stream))
        return "wgmma";
    if (in.kernel == "wgmma")
        fail_value(in.operation, "kernel must not be 'wgmma' for this call on this device");
    with_width(args, in.q.dtype, [&](auto t, auto width, auto relative) {
        typedef decltype(t) T;
        constexpr int D = decltype(width)::value;
        constexpr bool kRelative = decltype(relative)::value;
        typedef AttentionTile<T, D> Tile;
        if constexpr (kRelative)
            multiply_relative_biases<T>(in, args, allocate, stream);
        launch(in.operation, blocks_of(args, false, Tile::kRows, chunks_of(args.value_dim, D)), Tile::kThreads,
               attention_shared<T, D, kRelative>(1), stream, cuda::attention<T, D, kRelative>, args);
    });
    return "mma.sync";
}

const char *attention_backward(const AttentionInputs &in, const Array &dout, const Array &out, const Array &lse,
                               const MaybeArray &dlse, const Array &dq, const Array &dk, const Array &dv,
                               const MaybeArray &dsinks, const MaybeArray &dbias,
                               const std::optional<RelativeGradients> &drelative, const Allocate &allocate,
                               Stream stream) {
    AttentionArgs args = attention_args(in);
    args.out = operand(out);
    args.dout = operand(dout);
    args.dq = operand(dq);
    args.dk = operand(dk);
    args.dv = operand(dv);
    args.lse = lse.data;
    args.dlse = data_of(dlse);
    args.dsinks = data_of(dsinks);
    if (dbias) {
        Shape full(in.q.shape.begin(), in.q.shape.end() - 1);
        full.push_back(args.keys);
        args.dbias = pairs(dbias, full, in.q.dtype);
        const size_t axes = dbias->shape.size();
        args.bias_queries = axes > 1 ? dbias->shape[axes - 2] : 1;
        args.bias_keys = axes > 0 ? dbias->shape[axes - 1] : 1;
        args.bias_slices = 1;
        for (size_t axis = 0; axis + 2 < axes; ++axis)
            args.bias_slices *= dbias->shape[axis];
    }
    const int64_t rows = args.batches * args.heads * args.queries;
    args.delta = rows > 0 ? allocate(rows * kItemSize[int(lse.dtype)]) : nullptr;
    bool by_wgmma = false;
    with_width(args, in.q.dtype, [&](auto t, auto width, auto relative) {
        typedef decltype(t) T;
        typedef Acc<T> A;
        constexpr int D = decltype(width)::value;
        constexpr bool kRelative = decltype(relative)::value;
        typedef AttentionTile<T, D> Tile;
        constexpr int64_t kShared = attention_shared<T, D, kRelative>(2);
        const int64_t keys = args.batches * args.heads * args.keys, of_r = args.heads * args.relative.length;
        if constexpr (kRelative) {
            multiply_relative_biases<T>(in, args, allocate, stream);
            if (drelative) {
                args.relative.dr = drelative->r.data;
                A *sums = keys + of_r > 0 ? static_cast<A *>(allocate((keys + of_r) * int64_t(sizeof(A)))) : nullptr;
                args.relative.sum_keys = sums;
                args.relative.sum_rows = sums + keys;
            }
        }
        launch(in.operation,
               std::min(args.batches * args.heads * ceil_div(args.queries, int64_t(kDeltaRows)), kMostBlocks),
               kDeltaThreads, 0, stream, cuda::attention_delta<T>, args);
        if ((by_wgmma = attention_backward_by_wgmma(in, args, stream)))
            return;
        if (in.kernel == "wgmma")
            fail_value(in.operation, "kernel must not be 'wgmma' for this call on this device");
        launch(in.operation, blocks_of(args, false, Tile::kRows, chunks_of(args.dim, D)), Tile::kThreads, kShared,
               stream, cuda::attention_backward_queries<T, D, kRelative>, args);
        launch(in.operation, blocks_of(args, true, Tile::kRows, chunks_of(std::max(args.dim, args.value_dim), D)),
               Tile::kThreads, kShared + 2 * shared_bytes<A>(Tile::kColumns), stream,
               cuda::attention_backward_keys<T, D, kRelative>, args);
        if (dbias)
            launch(in.operation,
                   args.bias_slices * (args.bias_queries == 1 ? 1 : ceil_div(args.queries, Tile::kRows)) *
                       (args.bias_keys == 1 ? 1 : ceil_div(args.keys, Tile::kColumns)),
                   Tile::kThreads, kShared, stream, cuda::attention_bias_backward<T, D, kRelative>, args);
        if (args.dsinks)
            launch(in.operation, args.heads, kDeltaThreads, shared_bytes<double>(kDeltaThreads / kWarp), stream,
                   cuda::attention_sinks_backward<T>, args);
        if constexpr (kRelative)
            if (drelative) {
                launch(in.operation, args.heads * ceil_div(args.relative.length, Tile::kRows) * chunks_of(args.dim, D),
                       Tile::kThreads, kShared + shared_bytes<A>(Tile::kRows * (Tile::kRows + 4)), stream,
                       cuda::attention_relative_backward<T, D>, args);
                for (const bool of_keys : {true, false}) {
                    const Array &to = of_keys ? drelative->u : drelative->v;
                    with_wide(in.q.dtype, to.dtype, [&](auto, auto wide) {
                        sum_over_rows<A, decltype(wide)>(in.operation, WeightedRows<T>{args, of_keys}, to.data,
                                                         of_keys ? args.batches * args.keys : args.relative.length,
                                                         args.heads * args.dim, false, allocate, stream);
                    });
                }
            }
    });
    return by_wgmma ? "wgmma" : "mma.sync";
}

} // namespace nf::cuda
