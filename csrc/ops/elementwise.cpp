#include "ops/elementwise.hpp"

#include "core/error.hpp"
#include "ops/work.hpp"
#include "runtime/profiler.hpp"

#include <algorithm>
#include <cmath>

namespace nf::ops {
namespace {

void require_word(const char *operation, const char *argument, int64_t value) {
    if (value < 0 || value >= (int64_t(1) << 32))
        fail_value(operation, std::string(argument) + " must be in [0, 2**32), got " + std::to_string(value));
}

} // namespace

void run_activation(const char *operation, Activation activation, const View &x, const View &out) {
    ActivationArgs args{x.data, nullptr, out.data, x.size(), activation};
    profiler::Scope scope(operation, x.dtype, {args.count}, [&] { return work::activation(activation, x); });
    require_memory(runtime::kernels().activation[int(x.dtype)](args));
}

void run_activation_backward(const char *operation, Activation activation, const View &dy, const View &x,
                             const View &dx) {
    ActivationArgs args{x.data, dy.data, dx.data, x.size(), activation};
    profiler::Scope scope(operation, x.dtype, {args.count}, [&] { return work::activation_backward(activation, x); });
    require_memory(runtime::kernels().activation_backward[int(x.dtype)](args));
}

void check_add(const View &a, const View &b) {
    if (b.ndim() > a.ndim() || !std::equal(b.shape.begin(), b.shape.end(), a.shape.end() - b.ndim()))
        fail_value("add", "b must have the shape of a, " + to_string(a.shape) + ", or that of its last axes, got " +
                              to_string(b.shape));
}

void run_add(const View &a, const View &b, const View &out) {
    if (a.size() == 0)
        return;
    AddArgs args{a.data, b.data, b.dtype, out.data, a.size(), b.size()};
    profiler::Scope scope("add", a.dtype, {args.count}, [&] { return work::add(a, b); });
    require_memory(runtime::kernels().add[int(a.dtype)](args));
}

void run_cast(const View &x, double scale, const View &out) {
    require_finite("cast", "scale", scale);
    CastArgs args{x.data, out.data, out.dtype, x.size(), scale};
    profiler::Scope scope("cast", x.dtype, {args.count}, [&] { return work::cast(x, out, scale); });
    require_memory(runtime::kernels().cast[int(x.dtype)](args));
}

void run_sum_rows(const View &x, bool accumulate, const View &out) {
    SumRowsArgs args{x.data, out.data, out.dtype, row_count(x), column_count(x), accumulate};
    profiler::Scope scope("sum_rows", x.dtype, {args.rows, args.columns},
                          [&] { return work::sum_rows(x, out, accumulate); });
    if (scope.plan())
        return;
    require_memory(runtime::kernels().sum_rows[int(x.dtype)](args));
}

Shape check_embedding(const View &weight, const View &ids) {
    if (weight.ndim() != 2)
        fail_value("embedding", "weight must have shape (V, C), got " + to_string(weight.shape));
    check_integers("embedding", "ids", ids, weight.shape[0]);
    Shape shape = ids.shape;
    shape.push_back(weight.shape[1]);
    return shape;
}

Shape check_embedding_backward(const View &dy, const View &ids, int64_t num_embeddings) {
    const char *operation = "embedding_backward";
    if (num_embeddings < 0)
        fail_value(operation, "num_embeddings must not be negative, got " + std::to_string(num_embeddings));
    require_axes(operation, "dy", dy, 1);
    Shape expected = ids.shape;
    expected.push_back(dy.shape.back());
    require_shape(operation, "dy", dy, expected);
    check_integers(operation, "ids", ids, num_embeddings);
    return {num_embeddings, dy.shape.back()};
}

void run_embedding(const View &weight, const View &ids, const View &out) {
    EmbeddingArgs args{};
    args.rows = weight.data;
    args.ids = integers_of(ids);
    args.out = out.data;
    args.count = ids.size();
    args.columns = weight.shape[1];
    args.item_size = weight.item_size();
    profiler::Scope scope("embedding", weight.dtype, {args.count, args.columns},
                          [&] { return work::embedding(args, out); });
    require_memory(runtime::kernels().embedding(args));
}

void run_embedding_backward(const View &dy, const View &ids, bool accumulate, const View &out) {
    EmbeddingArgs args{};
    args.rows = dy.data;
    args.ids = integers_of(ids);
    args.out = out.data;
    args.out_type = out.dtype;
    args.count = ids.size();
    args.vocabulary = out.shape[0];
    args.columns = out.shape[1];
    args.item_size = dy.item_size();
    args.accumulate = accumulate;
    profiler::Scope scope("embedding_backward", dy.dtype, {args.count, args.vocabulary, args.columns},
                          [&] { return work::embedding_backward(args, dy, out); });
    require_memory(runtime::kernels().embedding_backward[int(dy.dtype)](args));
}

void Dropout::check(const View &x, const View *residual, const View *starts) {
    require_axes(operation, "the array", x, 1);
    require_range(operation, "p", p, 0, 1);
    require_word(operation, "seed", seed);
    require_word(operation, "layer", layer);
    require_word(operation, "step", step);
    require_word(operation, "sample", sample);
    if (residual)
        require_shape(operation, "residual", *residual, x.shape);
    samples = x.shape[0];
    const int64_t row = x.shape[0] > 0 ? x.size() / x.shape[0] : 0;
    int64_t longest = row;
    if (starts) {
        starts_of_samples = check_starts(operation, "cu_seqlens", *starts, "the array", x.shape[0]);
        samples = static_cast<int64_t>(starts_of_samples.size()) - 1;
        longest = 0;
        for (int64_t s = 0; s < samples; ++s)
            longest = std::max(longest, (starts_of_samples[s + 1] - starts_of_samples[s]) * row);
        for (int64_t &start : starts_of_samples)
            start *= row;
    }
    if (samples > 0) {
        require_word(operation, "sample + samples", sample + samples - 1);
        require_word(operation, "elements of a sample / 4", longest / 4);
    }
}

void Dropout::run(const View &x, const View *residual, const View &out) const {
    if (x.size() == 0)
        return;
    DropoutArgs args{};
    args.x = x.data;
    args.residual = residual ? residual->data : nullptr;
    args.out = out.data;
    args.samples = samples;
    args.elements = x.size();
    args.starts = starts_of_samples.empty() ? nullptr : starts_of_samples.data();
    args.seed = static_cast<uint32_t>(seed);
    args.layer = static_cast<uint32_t>(layer);
    args.step = static_cast<uint32_t>(step);
    args.sample = static_cast<uint32_t>(sample);
    args.limit = static_cast<uint32_t>(std::ceil(p * 0x1p24));
    args.factor = p < 1 ? 1 / (1 - p) : 0;
    profiler::Scope scope(operation, x.dtype, {x.shape[0], x.size() / x.shape[0]},
                          [&] { return work::dropout(x, residual); });
    require_memory(runtime::kernels().dropout[int(x.dtype)](args));
}

} // namespace nf::ops
