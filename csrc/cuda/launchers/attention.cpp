#include "cuda/kernels/attention_backward.hpp"

#include "cuda/launchers/attention_args.hpp"
#include "cuda/launchers/grids.hpp"

namespace nf::cuda {
namespace {

// f(T(), integral_constant<int, D>) with the least D that both widths fit in.
template <class F> void with_width(const AttentionArgs &args, DType dtype, F f) {
    const int64_t most = std::max(args.dim, args.value_dim);
    with_float(dtype, [&](auto t) {
        if (most <= 64)
            f(t, std::integral_constant<int, 64>());
        else if (most <= 128)
            f(t, std::integral_constant<int, 128>());
        else
            f(t, std::integral_constant<int, 256>());
    });
}

// Bytes of `matrices` matrices of a block's rows and of two tiles.
template <class T, int D> constexpr int64_t attention_shared(int matrices) {
    typedef AttentionTile<T, D> Tile;
    return matrices * shared_bytes<T>(Tile::kRows * Tile::kStride) +
           2 * shared_bytes<T>(Tile::kColumns * Tile::kStride);
}

} // namespace

const char *attention(const AttentionInputs &in, const Array &out, const MaybeArray &lse, Stream stream) {
    AttentionArgs args = attention_args(in);
    args.out = operand(out);
    args.lse = data_of(lse);
    if (attention_by_wgmma(in, args, stream))
        return "wgmma";
    if (in.kernel == "wgmma")
        fail_value(in.operation, "kernel must not be 'wgmma' for this call on this device");
    with_width(args, in.q.dtype, [&](auto t, auto width) {
        typedef decltype(t) T;
        constexpr int D = decltype(width)::value;
        typedef AttentionTile<T, D> Tile;
        launch(in.operation, blocks_of(args, false, Tile::kRows), Tile::kThreads, attention_shared<T, D>(1), stream,
               cuda::attention<T, D>, args);
    });
    return "mma.sync";
}

void attention_backward(const AttentionInputs &in, const Array &dout, const Array &out, const Array &lse,
                        const MaybeArray &dlse, const Array &dq, const Array &dk, const Array &dv,
                        const MaybeArray &dsinks, const MaybeArray &dbias, const Allocate &allocate, Stream stream) {
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
    with_width(args, in.q.dtype, [&](auto t, auto width) {
        typedef decltype(t) T;
        constexpr int D = decltype(width)::value;
        typedef AttentionTile<T, D> Tile;
        constexpr int64_t kShared = attention_shared<T, D>(2);
        launch(in.operation, blocks_for(rows, kDeltaThreads / kWarp), kDeltaThreads, 0, stream,
               cuda::attention_delta<T>, args);
        launch(in.operation, blocks_of(args, false, Tile::kRows), Tile::kThreads, kShared, stream,
               cuda::attention_backward_queries<T, D>, args);
        launch(in.operation, blocks_of(args, true, Tile::kRows), Tile::kThreads,
               kShared + 2 * shared_bytes<Acc<T>>(Tile::kColumns), stream, cuda::attention_backward_keys<T, D>, args);
        if (dbias)
            launch(in.operation,
                   args.bias_slices * (args.bias_queries == 1 ? 1 : ceil_div(args.queries, Tile::kRows)) *
                       (args.bias_keys == 1 ? 1 : ceil_div(args.keys, Tile::kColumns)),
                   Tile::kThreads, kShared, stream, cuda::attention_bias_backward<T, D>, args);
        if (args.dsinks)
            launch(in.operation, args.heads, kDeltaThreads, shared_bytes<double>(kDeltaThreads / kWarp), stream,
                   cuda::attention_sinks_backward<T>, args);
    });
}

} // namespace nf::cuda
