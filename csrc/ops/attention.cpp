#include "ops/attention.hpp"

#include "core/error.hpp"
#include "ops/check.hpp"
#include "ops/work.hpp"
#include "runtime/profiler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
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
    const auto shapes = [&] { // text only for an error: it takes a microsecond
        return ", got q " + to_string(q.shape) + ", k " + to_string(k.shape) + ", v " + to_string(v.shape);
    };
    if (args_.dim == 0)
        fail_value(operation, "q must have a last axis of at least 1, got " + to_string(q.shape));
    if (k.shape[axes - 1] != args_.dim)
        fail_value(operation,
                   "k must have shape (..., Hkv, M, " + std::to_string(args_.dim) + ") to match q" + shapes());
    if (v.shape[axes - 2] != args_.keys)
        fail_value(operation, "v must have as many rows as k, " + std::to_string(args_.keys) + shapes());
    if (axes > 2 && v.shape[axes - 3] != args_.kv_heads)
        fail_value(operation, "v must have as many heads as k, " + std::to_string(args_.kv_heads) + shapes());
    if (args_.kv_heads == 0 ? args_.heads != 0 : args_.heads % args_.kv_heads != 0)
        fail_value(operation,
                   "k must have a number of heads that divides q's, " + std::to_string(args_.heads) + shapes());
    for (int axis = 0; axis < axes - 3; ++axis) {
        if (k.shape[axis] != q.shape[axis])
            fail_value(operation, "k must have the leading axes of q" + shapes());
        if (v.shape[axis] != q.shape[axis])
            fail_value(operation, "v must have the leading axes of q" + shapes());
        leading_.push_back(q.shape[axis]);
        batches_ *= q.shape[axis];
    }
    args_.batches = batches_;
    args_.lse_row = args_.queries;
    args_.plain = true;
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
    causal_ = causal;
    left_ = left ? std::optional(std::min(*left, kNoLimit)) : std::nullopt;
    right_ = right ? std::optional(std::min(*right, kNoLimit)) : std::nullopt;
    apply_pattern(args_);
}

void Attention::apply_pattern(AttentionArgs &args) const {
    const int64_t diagonal = causal_ == Causal::top_left ? 0 : args.keys - args.queries;
    args.diagonal = diagonal;
    args.causal_high = causal_ == Causal::no ? kNoLimit : diagonal;
    args.low = left_ ? diagonal - *left_ : -kNoLimit;
    args.high = std::min(args.causal_high, right_ ? diagonal + *right_ : kNoLimit);
}

AttentionPairs Attention::pairs_of(const char *argument, const View &view) {
    Shape full = lse_shape();
    full.push_back(args_.keys);
    const int axes = static_cast<int>(full.size()), missing = axes - view.ndim();
    Shape strides(full.size(), 0);
    bool fits = missing >= 0;
    for (int axis = 0; fits && axis < view.ndim(); ++axis) {
        fits = view.shape[axis] == 1 || view.shape[axis] == full[axis + missing];
        strides[axis + missing] = view.shape[axis] == 1 ? 0 : view.strides[axis];
    }
    if (!fits)
        fail_value(operation_,
                   std::string(argument) + " must broadcast to " + to_string(full) + ", got " + to_string(view.shape));
    offsets_.push_back(leading_offsets(full, strides, leading_.size()));
    AttentionPairs pairs;
    pairs.data = view.data;
    pairs.batch = offsets_.back().data();
    pairs.head = axes > 2 ? strides[axes - 3] : 0;
    pairs.query = strides[axes - 2];
    pairs.key = strides[axes - 1];
    pairs.type = view.dtype;
    return pairs;
}

void Attention::set_mask(const View &mask) { args_.mask = pairs_of("mask", mask); }

void Attention::require_like_q(const char *argument, DType dtype) const {
    const bool half = dtype_ == DType::f16 || dtype_ == DType::bf16;
    if (dtype != dtype_ && !(half && dtype == DType::f32))
        fail_type(operation_, std::string(argument) + " must have the dtype of q, " + name_of(dtype_) +
                                  (half ? ", or float32" : "") + ", got " + name_of(dtype));
}

void Attention::set_bias(const View &bias) {
    require_like_q("bias", bias.dtype);
    args_.bias = pairs_of("bias", bias);
    args_.plain = false;
}

void Attention::set_softcap(double softcap) {
    if (!(std::isfinite(softcap) && softcap > 0))
        fail_value(operation_, "softcap must be finite and greater than 0, got " + std::to_string(softcap));
    args_.softcap = softcap;
    args_.plain = false;
}

void Attention::check_per_head(const char *argument, const View &view) const {
    require_like_q(argument, view.dtype);
    require_shape(operation_, argument, view, {args_.heads});
}

void Attention::set_slopes(const double *slopes) {
    for (int64_t head = 0; head < args_.heads; ++head)
        require_finite(operation_, "alibi_slopes", slopes[head]);
    args_.slopes = slopes;
    args_.plain = false;
}

void Attention::set_sinks(const double *sinks) {
    args_.sinks = sinks;
    args_.plain = false; // a row that sees nothing else has the sink as lse, to the bit
}

void Attention::set_global_tokens(const View &tokens, bool rows) {
    Shape full = leading_;
    full.push_back(args_.queries);
    if (args_.queries != args_.keys)
        fail_value(operation_, "global_tokens must be None unless q and k have as many rows, got " +
                                   std::to_string(args_.queries) + " and " + std::to_string(args_.keys));
    require_shape(operation_, "global_tokens", tokens, full);
    const std::vector<int64_t> offsets = leading_offsets(full, tokens.strides, leading_.size());
    global_.clear();
    global_count_.clear();
    for (int64_t offset : offsets) {
        const uint8_t *from = reinterpret_cast<const uint8_t *>(tokens.data) + offset;
        global_count_.push_back(0);
        for (int64_t i = 0; i < args_.queries; ++i) {
            global_.push_back(from[i * tokens.strides.back()]);
            global_count_.push_back(global_count_.back() + (global_.back() ? 1 : 0));
        }
    }
    args_.global = global_.data();
    args_.global_count = global_count_.data();
    args_.global_rows = rows;
}

void Attention::check_relative_bias(const char *argument, const View &view) const {
    require_like_q(argument, view.dtype);
    require_shape(operation_, argument, view, {args_.heads, args_.dim});
}

void Attention::set_relative(const View &r, const double *bias_u, const double *bias_v, int64_t origin) {
    if (r.dtype != dtype_)
        fail_type(operation_,
                  std::string("rel's r must have the dtype of q, ") + name_of(dtype_) + ", got " + name_of(r.dtype));
    if (r.ndim() != 3 || r.shape[0] != args_.heads || r.shape[2] != args_.dim)
        fail_value(operation_, "rel's r must have shape (" + std::to_string(args_.heads) + ", L, " +
                                   std::to_string(args_.dim) + "), got " + to_string(r.shape));
    args_.relative.r = r.data;
    args_.relative.head = r.strides[0];
    args_.relative.row = r.strides[1];
    args_.relative.length = r.shape[1];
    args_.relative.bias_u = bias_u;
    args_.relative.bias_v = bias_v;
    origin_ = origin;
    if (query_starts_)
        sequences(); // checks each
    else
        apply_relative(args_);
}

void Attention::apply_relative(AttentionArgs &args) const {
    AttentionRelative &relative = args.relative;
    if (!relative.r)
        return;
    // Query i sees keys [max(0, low + i), min(M - 1, high + i)] at most, the first query that sees one the nearest key,
    // the last one the farthest.
    const int64_t low = args.global ? -kNoLimit : args.low, high = args.global ? args.causal_high : args.high;
    const int64_t first_query = std::max<int64_t>(0, -high), last_query = std::min(args.queries, args.keys - low) - 1;
    if (first_query > last_query || args.keys == 0 || args.heads == 0) { // no query sees a key
        relative.r = nullptr;
        return;
    }
    const int64_t nearest = first_query + args.diagonal - std::min(args.keys - 1, high + first_query);
    const int64_t farthest = last_query + args.diagonal - std::max<int64_t>(0, low + last_query);
    const int64_t origin = std::clamp(origin_, -4 * kNoLimit, 4 * kNoLimit);
    const int64_t first = origin + nearest, last = origin + farthest;
    if (first < 0 || last >= relative.length)
        fail_value(operation_,
                   "rel's r must have a row origin + d for each distance d within causal and window, here " +
                       std::to_string(nearest) + " to " + std::to_string(farthest) + ", got " +
                       std::to_string(relative.length) + " rows and origin " + std::to_string(origin_));
    relative.middle = origin + args.diagonal;
    relative.first = first;
    relative.count = last - first + 1;
}

void Attention::set_sequences(const View &query_starts, const View &key_starts) {
    query_starts_ = check_starts(operation_, "cu_seqlens_q", query_starts, "q", args_.queries);
    key_starts_ = check_starts(operation_, "cu_seqlens_k", key_starts, "k", args_.keys);
    if (query_starts_->size() != key_starts_->size())
        fail_value(operation_, "cu_seqlens_k must have as many elements as cu_seqlens_q, " +
                                   std::to_string(query_starts_->size()) + ", got " +
                                   std::to_string(key_starts_->size()));
    if (args_.dropout.limit && query_starts_->size() - 1 > size_t(0x100000000) - args_.dropout.sample)
        fail_value(operation_, "seed's sample + sequences must be in [0, 2**32)");
}

std::vector<AttentionArgs> Attention::sequences() const {
    if (!query_starts_)
        return {args_};
    std::vector<AttentionArgs> all;
    const int64_t item = kItemSize[static_cast<int>(dtype_)], lse_item = dtype_ == DType::f64 ? 8 : 4;
    auto skip = [](auto *pointer, int64_t bytes) {
        return pointer ? static_cast<decltype(pointer)>(const_cast<char *>(static_cast<const char *>(pointer)) + bytes)
                       : pointer;
    };
    for (size_t s = 0; s + 1 < query_starts_->size(); ++s) {
        AttentionArgs args = args_;
        const int64_t query = (*query_starts_)[s], key = (*key_starts_)[s], index = static_cast<int64_t>(s);
        args.queries = (*query_starts_)[s + 1] - query;
        args.keys = (*key_starts_)[s + 1] - key;
        args.first_head = index * args.heads;
        args.first_kv_head = index * args.kv_heads;
        for (AttentionOperand *x : {&args.q, &args.out, &args.dout, &args.dq})
            x->data = skip(x->data, query * x->row * item);
        for (AttentionOperand *x : {&args.k, &args.v, &args.dk, &args.dv})
            x->data = skip(x->data, key * x->row * item);
        args.lse = skip(args.lse, query * lse_item);
        args.dlse = skip(args.dlse, query * lse_item);
        args.dsinks = args.dsinks ? args.dsinks + index * args.heads : nullptr;
        args.dropout.sample += static_cast<uint32_t>(s);
        apply_pattern(args);
        apply_relative(args);
        all.push_back(args);
    }
    return all;
}

void Attention::set_dropout(double p, const AttentionSeed &seed) {
    require_range(operation_, "dropout", p, 0, 1);
    if (p == 0)
        return;
    for (const auto &[name, value] : {std::pair<const char *, int64_t>{"seed", seed.seed},
                                      {"seed's layer", seed.layer},
                                      {"seed's step", seed.step},
                                      {"seed's sample", seed.sample},
                                      {"seed's sample + samples", seed.sample + std::max<int64_t>(batches_, 1) - 1}})
        if (value < 0 || value > 0xffffffff)
            fail_value(operation_, std::string(name) + " must be in [0, 2**32), got " + std::to_string(value));
    args_.dropout = {static_cast<uint32_t>(seed.seed),
                     static_cast<uint32_t>(seed.layer),
                     static_cast<uint32_t>(seed.step),
                     static_cast<uint32_t>(seed.sample),
                     static_cast<uint32_t>(std::ceil(p * 0x1p24)),
                     p < 1 ? 1 / (1 - p) : 0};
    args_.plain = false;
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
    const std::vector<AttentionArgs> all = sequences();
    if (all.empty())
        return;
    profiler::Scope scope(operation_, dtype_,
                          {args_.batches, args_.heads, args_.queries, args_.keys, args_.dim, args_.value_dim},
                          [&] { return work::sum(all, dtype_, work::attention); });
    const int64_t count = static_cast<int64_t>(all.size());
    if (Plan *plan = scope.plan())
        return runtime::kernels().plan_attention[static_cast<int>(dtype_)](all.data(), count, *plan);
    require_memory(runtime::kernels().attention[static_cast<int>(dtype_)](all.data(), count));
}

// A slice of the bias belongs to all (batch, head) that read it. dbias is contiguous, so slices lie one after another.
void Attention::lay_out_bias_gradient(const View &dbias) {
    const AttentionPairs to = pairs_of("bias", dbias);
    const int axes = dbias.ndim();
    args_.dbias.data = dbias.data;
    args_.dbias.queries = axes > 1 ? dbias.shape[axes - 2] : 1;
    args_.dbias.keys = axes > 0 ? dbias.shape[axes - 1] : 1;
    std::map<int64_t, std::vector<int64_t>> members; // by where the slice begins
    for (int64_t batch = 0; batch < batches_; ++batch)
        for (int64_t head = 0; head < args_.heads; ++head)
            members[to.batch[batch] + head * to.head].push_back(batch * args_.heads + head);
    args_.dbias.slices = static_cast<int64_t>(members.size());
    slice_first_.assign(1, 0);
    slice_members_.clear();
    for (const auto &[offset, list] : members) {
        slice_members_.insert(slice_members_.end(), list.begin(), list.end());
        slice_first_.push_back(static_cast<int64_t>(slice_members_.size()));
    }
    args_.dbias.first = slice_first_.data();
    args_.dbias.members = slice_members_.data();
}

void Attention::backward(const View &dout, const View &out, const View &lse, const View *dlse, const View &dq,
                         const View &dk, const View &dv, const AttentionGradients &more) {
    args_.out = operand(out);
    args_.dout = operand(dout);
    args_.dq = operand(dq);
    args_.dk = operand(dk);
    args_.dv = operand(dv);
    args_.lse = lse.data;
    args_.dlse = dlse ? dlse->data : nullptr;
    const int64_t count = query_starts_ ? static_cast<int64_t>(query_starts_->size()) - 1 : 1;
    if (more.dsinks) {
        dsinks_.assign(static_cast<size_t>(count * batches_ * args_.heads), 0.0);
        args_.dsinks = dsinks_.data();
    }
    if (more.dr) {
        args_.relative.dr = more.dr->data;
        args_.relative.du = more.dbias_u;
        args_.relative.dv = more.dbias_v;
    }
    const std::vector<AttentionArgs> all = sequences();
    if (!all.empty()) {
        profiler::Scope scope(operation_, dtype_,
                              {args_.batches, args_.heads, args_.queries, args_.keys, args_.dim, args_.value_dim},
                              [&] { return work::sum(all, dtype_, work::attention_backward); });
        if (Plan *plan = scope.plan())
            runtime::kernels().plan_attention_backward[static_cast<int>(dtype_)](all.data(), count, *plan);
        else
            require_memory(runtime::kernels().attention_backward[static_cast<int>(dtype_)](all.data(), count));
    }
    if (more.dsinks)
        for (int64_t head = 0; head < args_.heads; ++head) {
            double sum = 0;
            for (int64_t batch = 0; batch < count * batches_; ++batch)
                sum += dsinks_[static_cast<size_t>(batch * args_.heads + head)];
            more.dsinks[head] = sum;
        }
    args_.dsinks = nullptr;
    if (more.dbias && more.dbias->size() > 0) {
        std::memset(more.dbias->data, 0, static_cast<size_t>(more.dbias->size() * more.dbias->item_size()));
        lay_out_bias_gradient(*more.dbias);
        profiler::Scope scope("attention_bias_backward", dtype_,
                              {args_.batches, args_.heads, args_.queries, args_.keys, args_.dim, args_.value_dim},
                              [&] { return work::attention_bias_backward(args_, dtype_, *more.dbias); });
        if (!scope.plan())
            require_memory(runtime::kernels().attention_bias_backward[static_cast<int>(dtype_)](args_));
    }
    if (more.dr) {
        const size_t of_bias = static_cast<size_t>(args_.heads * args_.dim) * sizeof(double);
        if (more.dr->size() > 0)
            std::memset(more.dr->data, 0, static_cast<size_t>(more.dr->size() * more.dr->item_size()));
        if (of_bias > 0) {
            std::memset(more.dbias_u, 0, of_bias);
            std::memset(more.dbias_v, 0, of_bias);
        }
        const bool any = std::any_of(all.begin(), all.end(), [](const AttentionArgs &args) { return args.relative.r; });
        if (!any || batches_ == 0)
            return;
        profiler::Scope scope("attention_relative_backward", dtype_,
                              {args_.batches, args_.heads, args_.queries, args_.keys, args_.dim, args_.value_dim},
                              [&] { return work::sum(all, dtype_, work::attention_relative_backward); });
        if (!scope.plan())
            require_memory(runtime::kernels().attention_relative_backward[static_cast<int>(dtype_)](all.data(), count));
    }
}

} // namespace nf::ops
