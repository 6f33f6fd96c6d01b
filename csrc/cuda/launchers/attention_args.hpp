// From the arrays of a call of attention to the arguments of its kernels.
#pragma once
#include "cuda/api.hpp"
#include "cuda/kernels/attention.hpp"
#include "cuda/launchers/grids.hpp"

namespace nf::cuda {

inline AttentionOperand operand(const Array &x) {
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
inline AttentionPairs pairs(const MaybeArray &x, const Shape &full, DType dtype) {
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

inline AttentionPerHead per_head(const MaybeArray &x, DType dtype) {
    return {data_of(x), x && x->dtype == DType::f32 && is_half(dtype)};
}

inline AttentionArgs attention_args(const AttentionInputs &in) {
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

inline int64_t blocks_of(const AttentionArgs &args, bool by_keys, int rows, int chunks = 1) {
    const int64_t heads = by_keys ? args.kv_heads : args.heads;
    const int64_t each = ceil_div(by_keys ? args.keys : args.queries, rows);
    return chunks * (args.query_starts ? heads * (each + args.sequences) : args.batches * heads * each);
}

// Runs attention's forward by the kernel for compute capability 9.0. False, and nothing is done, where that one is not
// in this build, the device is another, or the call has what it cannot do.
bool attention_by_wgmma(const AttentionInputs &in, const AttentionArgs &args, Stream stream);
// ... dq, dk and dv of the backward; delta was made.
bool attention_backward_by_wgmma(const AttentionInputs &in, const AttentionArgs &args, Stream stream);

} // namespace nf::cuda
