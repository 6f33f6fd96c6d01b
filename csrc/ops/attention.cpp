#include "ops/attention.hpp"

#include "core/error.hpp"
#include "ops/work.hpp"
#include "runtime/profiler.hpp"

#include <algorithm>
#include <cmath>
#include <new>

namespace nf::ops {
namespace {

constexpr int64_t kNoLimit = int64_t(1) << 40; // beyond any number of keys, and sums of two do not overflow

// Offsets of every index of the leading axes, in C order.
std::vector<int64_t> leading_offsets(const Shape &shape, const Shape &strides, size_t axes) {
    std::vector<int64_t> offsets{0};
    for (size_t axis = 0; axis < axes; ++axis) {
        std::vector<int64_t> next;
        next.reserve(offsets.size() * static_cast<size_t>(shape[axis]));
        for (int64_t offset : offsets)
            for (int64_t i = 0; i < shape[axis]; ++i)
                next.push_back(offset + i * strides[axis]);
        offsets = std::move(next);
    }
    return offsets;
}

} // namespace

Attention::Attention(const char *operation, const View &q, const View &k, const View &v)
    : operation_(operation), dtype_(q.dtype), q_shape_(q.shape), v_shape_(v.shape) {
    const int axes = q.ndim();
    if (axes < 2 || axes > kMaxAxes)
        fail_value(operation, "q must have shape (..., H, N, D), got " + to_string(q.shape));
    for (const auto &[name, view] : {std::pair<const char *, const View &>{"k", k}, {"v", v}})
        if (view.ndim() != axes)
            fail_value(operation, std::string(name) + " must have as many axes as q " + to_string(q.shape) + ", got " +
                                      to_string(view.shape));
    args_.queries = q.shape[axes - 2];
    args_.dim = q.shape[axes - 1];
    args_.keys = k.shape[axes - 2];
    args_.value_dim = v.shape[axes - 1];
    args_.heads = axes > 2 ? q.shape[axes - 3] : 1;
    args_.kv_heads = axes > 2 ? k.shape[axes - 3] : 1;
    const std::string shapes =
        ", got q " + to_string(q.shape) + ", k " + to_string(k.shape) + ", v " + to_string(v.shape);
    if (args_.dim == 0)
        fail_value(operation, "q must have a last axis of at least 1, got " + to_string(q.shape));
    if (k.shape[axes - 1] != args_.dim)
        fail_value(operation, "k must have shape (..., Hkv, M, " + std::to_string(args_.dim) + ") to match q" + shapes);
    if (v.shape[axes - 2] != args_.keys)
        fail_value(operation, "v must have as many rows as k, " + std::to_string(args_.keys) + shapes);
    if (axes > 2 && v.shape[axes - 3] != args_.kv_heads)
        fail_value(operation, "v must have as many heads as k, " + std::to_string(args_.kv_heads) + shapes);
    if (args_.kv_heads == 0 ? args_.heads != 0 : args_.heads % args_.kv_heads != 0)
        fail_value(operation,
                   "k must have a number of heads that divides q's, " + std::to_string(args_.heads) + shapes);
    for (int axis = 0; axis < axes - 3; ++axis) {
        if (k.shape[axis] != q.shape[axis])
            fail_value(operation, "k must have the leading axes of q" + shapes);
        if (v.shape[axis] != q.shape[axis])
            fail_value(operation, "v must have the leading axes of q" + shapes);
        leading_.push_back(q.shape[axis]);
        batches_ *= q.shape[axis];
    }
    args_.batches = batches_;
    offsets_.reserve(16);
    args_.q = operand(q);
    args_.k = operand(k);
    args_.v = operand(v);
    set_scale(1.0 / std::sqrt(static_cast<double>(args_.dim)));
    set_pattern(Causal::no, nullptr, nullptr);
}

AttentionOperand Attention::operand(const View &view) {
    const int axes = view.ndim();
    AttentionOperand x;
    offsets_.push_back(leading_offsets(view.shape, view.strides, leading_.size()));
    x.data = view.data;
    x.batch = offsets_.back().data();
    x.head = axes > 2 ? view.strides[axes - 3] : 0;
    x.row = view.strides[axes - 2];
    return x;
}

void Attention::set_scale(double scale) {
    if (!std::isfinite(scale))
        fail_value(operation_, "scale must be finite, got " + std::to_string(scale));
    args_.scale = scale;
}

void Attention::set_pattern(Causal causal, const int64_t *left, const int64_t *right) {
    for (const auto &[name, side] : {std::pair<const char *, const int64_t *>{"left", left}, {"right", right}})
        if (side && *side < 0)
            fail_value(operation_, std::string("window must have sides that are None or not negative, got ") + name +
                                       " = " + std::to_string(*side));
    const int64_t diagonal = causal == Causal::top_left ? 0 : args_.keys - args_.queries;
    args_.low = left ? diagonal - std::min(*left, kNoLimit) : -kNoLimit;
    args_.high = right ? diagonal + std::min(*right, kNoLimit) : kNoLimit;
    if (causal != Causal::no)
        args_.high = std::min(args_.high, diagonal);
}

void Attention::set_mask(const View &mask) {
    Shape full = lse_shape();
    full.push_back(args_.keys);
    const int axes = static_cast<int>(full.size()), missing = axes - mask.ndim();
    Shape strides(full.size(), 0);
    bool fits = missing >= 0;
    for (int axis = 0; fits && axis < mask.ndim(); ++axis) {
        fits = mask.shape[axis] == 1 || mask.shape[axis] == full[axis + missing];
        strides[axis + missing] = mask.shape[axis] == 1 ? 0 : mask.strides[axis];
    }
    if (!fits)
        fail_value(operation_, "mask must broadcast to " + to_string(full) + ", got " + to_string(mask.shape));
    offsets_.push_back(leading_offsets(full, strides, leading_.size()));
    args_.mask = reinterpret_cast<const uint8_t *>(mask.data);
    args_.mask_batch = offsets_.back().data();
    args_.mask_head = axes > 2 ? strides[axes - 3] : 0;
    args_.mask_query = strides[axes - 2];
    args_.mask_key = strides[axes - 1];
}

Shape Attention::out_shape() const {
    Shape shape = q_shape_;
    shape.back() = v_shape_.back();
    return shape;
}
Shape Attention::lse_shape() const { return Shape(q_shape_.begin(), q_shape_.end() - 1); }

void Attention::forward(const View &out, const View &lse) {
    args_.out = operand(out);
    args_.lse = lse.data;
    profiler::Scope scope(operation_, dtype_,
                          {args_.batches, args_.heads, args_.queries, args_.keys, args_.dim, args_.value_dim},
                          [&] { return work::attention(args_, dtype_); });
    if (!runtime::kernels().attention[static_cast<int>(dtype_)](args_))
        throw std::bad_alloc();
}

void Attention::backward(const View &dout, const View &out, const View &lse, const View &dq, const View &dk,
                         const View &dv) {
    args_.out = operand(out);
    args_.dout = operand(dout);
    args_.dq = operand(dq);
    args_.dk = operand(dk);
    args_.dv = operand(dv);
    args_.lse = lse.data;
    profiler::Scope scope(operation_, dtype_,
                          {args_.batches, args_.heads, args_.queries, args_.keys, args_.dim, args_.value_dim},
                          [&] { return work::attention_backward(args_, dtype_); });
    if (!runtime::kernels().attention_backward[static_cast<int>(dtype_)](args_))
        throw std::bad_alloc();
}

} // namespace nf::ops
