#include "ops/matmul.hpp"

#include "core/error.hpp"
#include "ops/work.hpp"
#include "runtime/profiler.hpp"

#include <algorithm>
#include <cmath>
#include <new>

namespace nf::ops {
namespace {

constexpr const char *kName = "matmul";

// A one-dimensional operand is one row (of a) or one column (of b).
View as_matrix(const View &view, bool is_column) {
    if (view.ndim() != 1)
        return view;
    View matrix = view;
    matrix.shape = is_column ? Shape{view.shape[0], 1} : Shape{1, view.shape[0]};
    matrix.strides = is_column ? Shape{view.strides[0], 1} : Shape{1, view.strides[0]};
    return matrix;
}

// The matrix as it would lie in an array that nobody reads.
View view_of(const PackedMatrix &matrix) {
    View view;
    view.shape = {matrix.rows(), matrix.columns()};
    view.strides = {matrix.columns(), 1};
    return view;
}

} // namespace

// Of an axis that has at most one element the stride means nothing: let it be the one that suits the kernel.
void matrix_strides(const View &view, int64_t &row, int64_t &col) {
    const int axes = view.ndim();
    row = view.strides[axes - 2];
    col = view.strides[axes - 1];
    if (view.shape[axes - 1] <= 1)
        col = 1;
    else if (view.shape[axes - 2] <= 1 && col != 1)
        row = 1;
}

Activation activation_from(const char *operation, const std::string &name) {
    if (name == "relu")
        return Activation::relu;
    if (name == "gelu")
        return Activation::gelu;
    if (name == "gelu_tanh")
        return Activation::gelu_tanh;
    if (name == "silu")
        return Activation::silu;
    fail_value(operation, "activation must be None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got '" + name + "'");
}

Matmul::Matmul(const View &a_given, const View &b_given)
    : dtype_(a_given.dtype), a_is_vector_(a_given.ndim() == 1), b_is_vector_(b_given.ndim() == 1) {
    for (const auto &[name, view] : {std::pair<const char *, const View &>{"a", a_given}, {"b", b_given}})
        if (view.ndim() < 1 || view.ndim() > kMaxAxes)
            fail_value(kName, std::string(name) + " must have 1 to " + std::to_string(kMaxAxes) + " axes, got shape " +
                                  to_string(view.shape));
    View a = as_matrix(a_given, false), b = as_matrix(b_given, true);
    const int a_axes = a.ndim(), b_axes = b.ndim();
    args_.m = a.shape[a_axes - 2];
    args_.k = a.shape[a_axes - 1];
    args_.n = b.shape[b_axes - 1];
    if (b.shape[b_axes - 2] != args_.k)
        fail_value(kName, "b must have " + std::to_string(args_.k) + " rows to match a " + to_string(a_given.shape) +
                              ", got " + to_string(b_given.shape));
    args_.a = a.data;
    args_.b = b.data;
    matrix_strides(a, args_.a_row, args_.a_col);
    matrix_strides(b, args_.b_row, args_.b_col);
    args_.scale = 1.0;

    // Rows of a stack against one matrix are rows of one taller matrix.
    while (b.ndim() == 2 && a.ndim() > 2 && args_.a_col == 1 &&
           (args_.m == 1 || a.shape[a.ndim() - 3] == 1 || a.strides[a.ndim() - 3] == args_.m * args_.a_row)) {
        const int axis = a.ndim() - 3;
        if (args_.m == 1)
            args_.a_row = a.strides[axis];
        out_shape_.insert(out_shape_.begin(), a.shape[axis]);
        args_.m *= a.shape[axis];
        a.shape.erase(a.shape.begin() + axis);
        a.strides.erase(a.strides.begin() + axis);
    }
    const Shape folded = out_shape_;
    out_shape_.clear();

    const int batch_axes = std::max(a.ndim(), b.ndim()) - 2;
    args_.batch_axes = batch_axes;
    for (int axis = 0; axis < batch_axes; ++axis) {
        const int a_axis = axis - batch_axes + a.ndim() - 2, b_axis = axis - batch_axes + b.ndim() - 2;
        const int64_t a_size = a_axis >= 0 ? a.shape[a_axis] : 1, b_size = b_axis >= 0 ? b.shape[b_axis] : 1;
        if (a_size != b_size && a_size != 1 && b_size != 1)
            fail_value(kName, "batch axes of a and b must broadcast, got " + to_string(a_given.shape) + " and " +
                                  to_string(b_given.shape));
        args_.batch_shape[axis] = a_size == 1 ? b_size : a_size;
        args_.a_batch[axis] = a_size == 1 ? 0 : a.strides[a_axis];
        args_.b_batch[axis] = b_size == 1 ? 0 : b.strides[b_axis];
        out_shape_.push_back(args_.batch_shape[axis]);
    }
    out_shape_.insert(out_shape_.end(), folded.begin(), folded.end());
    if (!a_is_vector_)
        out_shape_.push_back(a_given.shape[a_given.ndim() - 2]);
    if (!b_is_vector_)
        out_shape_.push_back(args_.n);
    args_.out_type = dtype_;
}

Matmul::Matmul(const View &a, const PackedMatrix &b) : Matmul(a, view_of(b)) {
    args_.b = b.panels();
    args_.stored = b.stored();
    args_.panel = b.panel();
    args_.column_scale = b.column_scale();
}

// Strides of an array of out_shape(): those of the batch and the one between rows.
void Matmul::set_matrix_strides(const View &view, int64_t &row, int64_t *batch) const {
    Shape strides = view.strides;
    if (b_is_vector_)
        strides.push_back(1);
    if (a_is_vector_)
        strides.insert(strides.end() - 1, args_.n);
    std::copy_n(strides.begin(), args_.batch_axes, batch);
    row = strides[strides.size() - 2];
}

void Matmul::set_bias(const View &bias) {
    if (bias.ndim() != 1 || bias.shape[0] != args_.n)
        fail_value(kName, "bias must have shape (" + std::to_string(args_.n) + ",), got " + to_string(bias.shape));
    args_.bias = bias.data;
    args_.bias_type = bias.dtype;
}

void Matmul::set_residual(const View &residual) {
    args_.residual = residual.data;
    set_matrix_strides(residual, args_.residual_row, args_.residual_batch);
}

void Matmul::set_preactivation(const View &preactivation) {
    args_.preactivation = preactivation.data;
    set_matrix_strides(preactivation, args_.preactivation_row, args_.preactivation_batch);
}

void Matmul::set_scale(double scale) {
    if (!std::isfinite(scale))
        fail_value(kName, "scale must be finite, got " + std::to_string(scale));
    args_.scale = scale;
}

void Matmul::run(const View &out) {
    args_.out = out.data;
    args_.out_type = out.dtype;
    set_matrix_strides(out, args_.out_row, args_.out_batch);
    int64_t batch = 1;
    for (int axis = 0; axis < args_.batch_axes; ++axis)
        batch *= args_.batch_shape[axis];
    profiler::Scope scope(kName, dtype_, {batch, args_.m, args_.k, args_.n},
                          [&] { return work::matmul(args_, dtype_); });
    if (Plan *plan = scope.plan())
        return runtime::kernels().plan_matmul[static_cast<int>(dtype_)](args_, *plan);
    if (!runtime::kernels().matmul[static_cast<int>(dtype_)](args_))
        throw std::bad_alloc();
}

} // namespace nf::ops
