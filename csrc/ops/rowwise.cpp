#include "ops/rowwise.hpp"

#include "core/error.hpp"
#include "ops/work.hpp"
#include "runtime/profiler.hpp"

namespace nf::ops {
namespace {

void *data_of(const View *view) { return view ? view->data : nullptr; }

SoftmaxArgs softmax_args(const View &x, int axis, const View &out) {
    SoftmaxArgs args{};
    args.x = x.data;
    args.out = out.data;
    args.outer = args.inner = 1;
    for (int i = 0; i < axis; ++i)
        args.outer *= x.shape[i];
    args.count = x.shape[axis];
    for (int i = axis + 1; i < x.ndim(); ++i)
        args.inner *= x.shape[i];
    return args;
}

CrossEntropyArgs cross_entropy_args(const CrossEntropy &call) {
    CrossEntropyArgs args{};
    args.logits = call.logits.data;
    args.targets = integers_of(call.targets);
    args.rows = row_count(call.logits);
    args.columns = column_count(call.logits);
    args.ignore_index = call.ignore_index;
    args.label_smoothing = call.label_smoothing;
    return args;
}

} // namespace

int softmax_axis(const char *operation, const View &x, int64_t axis) {
    require_axes(operation, "x", x, 1);
    const int64_t axes = x.ndim();
    if (axis < -axes || axis >= axes)
        fail_value(operation, "axis must be in [" + std::to_string(-axes) + ", " + std::to_string(axes) +
                                  ") for shape " + to_string(x.shape) + ", got " + std::to_string(axis));
    return static_cast<int>(axis < 0 ? axis + axes : axis);
}

void run_softmax(const View &x, int axis, const View &out) {
    if (x.size() == 0)
        return;
    const SoftmaxArgs args = softmax_args(x, axis, out);
    profiler::Scope scope("softmax", x.dtype, {args.outer, args.count, args.inner}, [&] { return work::softmax(x); });
    require_memory(runtime::kernels().softmax[int(x.dtype)](args));
}

void run_softmax_backward(const View &dy, const View &y, int axis, const View &dx) {
    if (y.size() == 0)
        return;
    SoftmaxArgs args = softmax_args(y, axis, dx);
    args.dy = dy.data;
    profiler::Scope scope("softmax_backward", y.dtype, {args.outer, args.count, args.inner},
                          [&] { return work::softmax_backward(y); });
    require_memory(runtime::kernels().softmax_backward[int(y.dtype)](args));
}

void Norm::check() const {
    require_columns(operation, "x", *x);
    const Shape row = {x->shape.back()};
    if (weight)
        require_shape(operation, "weight", *weight, row);
    if (bias)
        require_shape(operation, "bias", *bias, row);
    if (dy) {
        require_shape(operation, "dy", *dy, x->shape);
        if (mean)
            require_shape(operation, "mean", *mean, leading(x->shape));
        require_shape(operation, "rstd", *rstd, leading(x->shape));
    }
    if (residual)
        require_shape(operation, "residual", *residual, x->shape);
    if (weight && bias && weight->dtype != bias->dtype)
        fail_type(operation, std::string("bias must have the dtype of weight, ") + name_of(weight->dtype) + ", got " +
                                 name_of(bias->dtype));
    require_finite(operation, "eps", eps);
    if (eps < 0)
        fail_value(operation, "eps must not be negative, got " + std::to_string(eps));
}

void Norm::run(const View &out) const {
    NormArgs args{};
    args.x = x->data;
    args.weight = data_of(weight);
    args.bias = data_of(bias);
    args.mean = data_of(mean);
    args.rstd = data_of(rstd);
    args.out = out.data;
    args.rows = row_count(*x);
    args.columns = column_count(*x);
    args.eps = eps;
    args.centred = centred;
    args.weight_type = weight_type();
    profiler::Scope scope(operation, x->dtype, {args.rows, args.columns}, [&] { return work::norm(args, *x); });
    require_memory(runtime::kernels().norm[int(x->dtype)](args));
}

void Norm::run_backward(const View &dx) const {
    NormArgs args{};
    args.x = x->data;
    args.weight = data_of(weight);
    args.mean = data_of(mean);
    args.rstd = data_of(rstd);
    args.dy = dy->data;
    args.residual = data_of(residual);
    args.dweight = data_of(dweight);
    args.dbias = data_of(dbias);
    args.out = dx.data;
    args.rows = row_count(*x);
    args.columns = column_count(*x);
    args.centred = centred;
    args.weight_type = weight_type();
    profiler::Scope scope(operation, x->dtype, {args.rows, args.columns},
                          [&] { return work::norm_backward(args, *x); });
    require_memory(runtime::kernels().norm_backward[int(x->dtype)](args));
}

Reduction reduction_from(const char *operation, const std::string &name) {
    if (name == "mean")
        return Reduction::mean;
    if (name == "sum")
        return Reduction::sum;
    if (name == "none")
        return Reduction::none;
    fail_value(operation, "reduction must be 'mean', 'sum' or 'none', got '" + name + "'");
}

void CrossEntropy::check() {
    require_columns(operation, "logits", logits);
    require_shape(operation, "targets", targets, leading(logits.shape));
    require_range(operation, "label_smoothing", label_smoothing, 0, 1);
    used = check_integers(operation, "targets", targets, logits.shape.back(), ignore_index);
}

void CrossEntropy::run(const View &row_losses, const View &lse) const {
    CrossEntropyArgs args = cross_entropy_args(*this);
    args.loss = row_losses.data;
    args.lse = lse.data;
    profiler::Scope scope(operation, logits.dtype, {args.rows, args.columns},
                          [&] { return work::cross_entropy(args, logits); });
    require_memory(runtime::kernels().cross_entropy[int(logits.dtype)](args));
}

double sum_of(const View &row_losses) {
    double sum = 0;
    for (int64_t i = 0; i < row_losses.size(); ++i)
        sum += row_losses.dtype == DType::f64 ? reinterpret_cast<const double *>(row_losses.data)[i]
                                              : double(reinterpret_cast<const float *>(row_losses.data)[i]);
    return sum;
}

double CrossEntropy::reduce(const View &row_losses) const {
    const double sum = sum_of(row_losses);
    return reduction == Reduction::mean && used > 0 ? sum / work::real(used) : sum;
}

void CrossEntropy::run_backward(const View &dloss, const View &lse, const View &out) const {
    CrossEntropyArgs args = cross_entropy_args(*this);
    args.lse = lse.data;
    args.dloss = dloss.data;
    args.dloss_stride = dloss.ndim() == 0 ? 0 : 1;
    args.weight = reduction == Reduction::mean && used > 0 ? 1 / work::real(used) : 1;
    args.out = out.data;
    profiler::Scope scope(operation, logits.dtype, {args.rows, args.columns},
                          [&] { return work::cross_entropy_backward(args, logits, used); });
    require_memory(runtime::kernels().cross_entropy_backward[int(logits.dtype)](args));
}

} // namespace nf::ops
