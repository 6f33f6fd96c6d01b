#include "cuda/kernels/attention_forward.hpp"
#include "cuda/kernels/attention_relative_backward.hpp"

#include "cuda/launchers/grids.hpp"

namespace nf::cuda {
namespace {

AttentionOperand operand(const Array &x) {
    AttentionOperand result{};
    const size_t axes = x.shape.size();
    result.data = x.data;
    for (size_t axis = 0; axis + 3 < axes; ++axis)
        result.batch[axis] = x.strides[axis];
    result.head = axes > 2 ? x.strides[axes - 3] : 0;
    result.row = x.strides[axes - 2];
    return result;
}

// `full`: the shape (..., H, N, M) that it broadcasts to.
AttentionPairs pairs(const MaybeArray &x, const Shape &full, DType dtype) {
    AttentionPairs result{};
    if (!x)
        return result;
    const size_t axes = full.size(), missing = axes - x->shape.size();
    Shape strides(axes, 0);
    for (size_t axis = missing; axis < axes; ++axis)
        strides[axis] = x->shape[axis - missing] == 1 ? 0 : x->strides[axis - missing];
    result.data = x->data;
    for (size_t axis = 0; axis + 3 < axes; ++axis)
        result.batch[axis] = strides[axis];
    result.head = axes > 2 ? strides[axes - 3] : 0;
    result.query = strides[axes - 2];
    result.key = strides[axes - 1];
    result.is_float = x->dtype == DType::f32 && is_half(dtype);
    return result;
}

AttentionPerHead per_head(const MaybeArray &x, DType dtype) {
    return {data_of(x), x && x->dtype == DType::f32 && is_half(dtype)};
}

AttentionArgs attention_args(const AttentionInputs &in) {
    AttentionArgs args{};
    const size_t axes = in.q.shape.size();
    args.batches = 1;
    args.leading_axes = axes > 3 ? int(axes) - 3 : 0;
    for (int axis = 0; axis < args.leading_axes; ++axis)
        args.batches *= args.leading[axis] = in.q.shape[size_t(axis)];
    args.heads = axes > 2 ? in.q.shape[axes - 3] : 1;
    args.kv_heads = axes > 2 ? in.k.shape[axes - 3] : 1;
    args.queries = in.q.shape[axes - 2];
    args.keys = in.k.shape[axes - 2];
    args.dim = in.q.shape[axes - 1];
    args.value_dim = in.v.shape[axes - 1];
    args.q = operand(in.q);
    args.k = operand(in.k);
    args.v = operand(in.v);
    Shape full(in.q.shape.begin(), in.q.shape.end() - 1);
    full.push_back(args.keys);
    args.mask = pairs(in.mask, full, in.q.dtype);
    args.bias = pairs(in.bias, full, in.q.dtype);
    args.slopes = per_head(in.slopes, in.q.dtype);
    args.sinks = per_head(in.sinks, in.q.dtype);
    if (in.global) {
        Array tokens = *in.global; // (..., N): the same for all heads
        args.global.data = tokens.data;
        for (size_t axis = 0; axis + 1 < tokens.shape.size(); ++axis)
            args.global.batch[axis] = tokens.strides[axis];
        args.global.row = tokens.strides.back();
        args.global_rows = in.global_rows;
    }
    if (in.relative) {
        args.relative.r = operand(in.relative->r);
        args.relative.u = per_head(in.relative->u, in.q.dtype);
        args.relative.v = per_head(in.relative->v, in.q.dtype);
        args.relative.length = in.relative->r.shape[1];
        args.relative.origin = in.relative->origin;
    }
    args.causal = in.causal;
    args.top_left = in.top_left;
    args.left = in.left ? std::min(*in.left, kNoLimit) : kNoLimit;
    args.right = in.right ? std::min(*in.right, kNoLimit) : kNoLimit;
    args.scale = in.scale;
    args.softcap = in.softcap;
    args.tf32 = in.tf32;
    if (in.dropout.p > 0)
        args.dropout = {in.dropout.seed,
                        in.dropout.layer,
                        in.dropout.step,
                        in.dropout.sample,
                        dropout_limit(in.dropout.p),
                        dropout_factor(in.dropout.p)};
    if (in.query_starts) {
        args.query_starts = in.query_starts->data;
        args.key_starts = in.key_starts->data;
        args.wide_query_starts = in.query_starts->dtype == DType::i64;
        args.wide_key_starts = in.key_starts->dtype == DType::i64;
        args.sequences = in.query_starts->shape[0] - 1;
    }
    return args;
}

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

int64_t blocks_of(const AttentionArgs &args, bool by_keys, int rows, int chunks) {
    const int64_t heads = by_keys ? args.kv_heads : args.heads;
    const int64_t each = ceil_div(by_keys ? args.keys : args.queries, rows);
    return chunks * (args.query_starts ? heads * (each + args.sequences) : args.batches * heads * each);
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

void attention(const AttentionInputs &in, const Array &out, const MaybeArray &lse, const Allocate &allocate,
               Stream stream) {
    AttentionArgs args = attention_args(in);
    args.out = operand(out);
    args.lse = data_of(lse);
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
}

void attention_backward(const AttentionInputs &in, const Array &dout, const Array &out, const Array &lse,
                        const MaybeArray &dlse, const Array &dq, const Array &dk, const Array &dv,
                        const MaybeArray &dsinks, const MaybeArray &dbias,
                        const std::optional<RelativeGradients> &drelative, const Allocate &allocate, Stream stream) {
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
        launch(in.operation, blocks_for(rows, kDeltaThreads / kWarp), kDeltaThreads, 0, stream,
               cuda::attention_delta<T>, args);
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
}

} // namespace nf::cuda
