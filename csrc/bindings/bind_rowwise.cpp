#include "bindings/scalars.hpp"
#include "ops/rowwise.hpp"

namespace nf::bindings {
namespace {

py::object softmax(py::handle x_object, py::handle axis_object) {
    const char *name = "softmax";
    const Input x = float_input(name, "x", x_object);
    const int axis = ops::softmax_axis(name, x.view, integer(name, "axis", axis_object));
    Input y = allocate(x.view.shape, x.view.dtype);
    {
        py::gil_scoped_release release;
        ops::run_softmax(x.view, axis, y.view);
    }
    return y.array;
}

py::object softmax_backward(py::handle dy_object, py::handle y_object, py::handle axis_object) {
    const char *name = "softmax_backward";
    const Input dy = float_input(name, "dy", dy_object);
    const Input y = float_input(name, "y", y_object, dy.view.dtype);
    ops::require_shape(name, "y", y.view, dy.view.shape);
    const int axis = ops::softmax_axis(name, y.view, integer(name, "axis", axis_object));
    Input dx = allocate(y.view.shape, y.view.dtype);
    {
        py::gil_scoped_release release;
        ops::run_softmax_backward(dy.view, y.view, axis, dx.view);
    }
    return dx.array;
}

// Layer norm, and RMS norm where `centred` is false.
py::object norm(const char *name, bool centred, py::handle x_object, py::handle weight_object, py::handle bias_object,
                py::handle eps, py::handle return_stats) {
    const Input x = float_input(name, "x", x_object);
    const std::optional<Input> weight = optional_wide_input(name, "weight", weight_object, x.view.dtype);
    const std::optional<Input> bias = optional_wide_input(name, "bias", bias_object, x.view.dtype);
    ops::Norm call{name, centred};
    call.x = &x.view;
    call.weight = pointer_to(weight);
    call.bias = pointer_to(bias);
    call.eps = number(name, "eps", eps);
    call.check();
    Input y = allocate(x.view.shape, x.view.dtype);
    std::optional<Input> mean, rstd;
    if (boolean(name, "return_stats", return_stats)) {
        const Shape rows = ops::leading(x.view.shape);
        const DType type = ops::statistics_type(x.view.dtype);
        rstd = allocate(rows, type);
        if (centred)
            mean = allocate(rows, type);
        call.mean = pointer_to(mean);
        call.rstd = pointer_to(rstd);
    }
    {
        py::gil_scoped_release release;
        call.run(y.view);
    }
    if (mean)
        return py::make_tuple(y.array, mean->array, rstd->array);
    return rstd ? py::object(py::make_tuple(y.array, rstd->array)) : py::object(y.array);
}

py::object norm_backward(const char *name, bool centred, py::handle dy_object, py::handle x_object,
                         py::handle mean_object, py::handle rstd_object, py::handle weight_object, py::handle bias,
                         py::handle residual_object) {
    const Input dy = float_input(name, "dy", dy_object);
    const DType dtype = dy.view.dtype, statistics = ops::statistics_type(dtype);
    const Input x = float_input(name, "x", x_object, dtype);
    auto row_statistic = [&](const char *argument, py::handle object) {
        Input result = input(name, argument, object, Layout::contiguous);
        if (result.view.dtype != statistics)
            fail_type(name, std::string(argument) + " must have dtype " + name_of(statistics) + ", got " +
                                name_of(result.view.dtype));
        return result;
    };
    std::optional<Input> mean;
    if (centred)
        mean = row_statistic("mean", mean_object);
    const Input rstd = row_statistic("rstd", rstd_object);
    const std::optional<Input> weight = optional_wide_input(name, "weight", weight_object, dtype);
    const std::optional<Input> residual = optional_float_input(name, "residual", residual_object, dtype);
    ops::Norm call{name, centred};
    call.dy = &dy.view;
    call.x = &x.view;
    call.mean = pointer_to(mean);
    call.rstd = &rstd.view;
    call.weight = pointer_to(weight);
    call.residual = pointer_to(residual);
    call.check();
    Input dx = allocate(x.view.shape, dtype);
    std::optional<Input> dweight, dbias;
    if (weight)
        dweight = allocate({x.view.shape.back()}, call.weight_type());
    if (centred && boolean(name, "bias", bias))
        dbias = allocate({x.view.shape.back()}, call.weight_type());
    call.dweight = pointer_to(dweight);
    call.dbias = pointer_to(dbias);
    {
        py::gil_scoped_release release;
        call.run_backward(dx.view);
    }
    if (centred)
        return py::make_tuple(dx.array, array_or_none(dweight), array_or_none(dbias));
    return py::make_tuple(dx.array, array_or_none(dweight));
}

py::object layer_norm(py::handle x, py::handle weight, py::handle bias, py::handle eps, py::handle return_stats) {
    return norm("layer_norm", true, x, weight, bias, eps, return_stats);
}
py::object rms_norm(py::handle x, py::handle weight, py::handle eps, py::handle return_stats) {
    return norm("rms_norm", false, x, weight, py::none(), eps, return_stats);
}
py::object layer_norm_backward(py::handle dy, py::handle x, py::handle mean, py::handle rstd, py::handle weight,
                               py::handle bias, py::handle residual) {
    return norm_backward("layer_norm_backward", true, dy, x, mean, rstd, weight, bias, residual);
}
py::object rms_norm_backward(py::handle dy, py::handle x, py::handle rstd, py::handle weight, py::handle residual) {
    return norm_backward("rms_norm_backward", false, dy, x, py::none(), rstd, weight, py::none(), residual);
}

ops::CrossEntropy cross_entropy_call(const char *name, const Input &logits, const Input &targets,
                                     py::handle ignore_index, py::handle label_smoothing, py::handle reduction) {
    ops::CrossEntropy call{name,
                           logits.view,
                           targets.view,
                           integer(name, "ignore_index", ignore_index),
                           number(name, "label_smoothing", label_smoothing),
                           ops::reduction_from(name, text(name, "reduction", reduction))};
    call.check();
    return call;
}

py::object cross_entropy(py::handle logits_object, py::handle targets_object, py::handle ignore_index,
                         py::handle label_smoothing, py::handle reduction, py::handle return_lse) {
    const char *name = "cross_entropy";
    const Input logits = float_input(name, "logits", logits_object);
    const Input targets = input(name, "targets", targets_object, Layout::contiguous);
    const ops::CrossEntropy call = cross_entropy_call(name, logits, targets, ignore_index, label_smoothing, reduction);
    const DType type = ops::statistics_type(logits.view.dtype);
    Input losses = allocate(targets.view.shape, type), lse = allocate(targets.view.shape, type);
    double total = 0;
    {
        py::gil_scoped_release release;
        call.run(losses.view, lse.view);
        total = call.reduce(losses.view);
    }
    py::object loss = losses.array;
    if (call.reduction != ops::Reduction::none)
        loss = dtype_of(type).attr("type")(total);
    return boolean(name, "return_lse", return_lse) ? py::object(py::make_tuple(loss, lse.array)) : loss;
}

py::object cross_entropy_backward(py::handle dloss_object, py::handle logits_object, py::handle targets_object,
                                  py::handle lse_object, py::handle ignore_index, py::handle label_smoothing,
                                  py::handle reduction, py::handle out_object) {
    const char *name = "cross_entropy_backward";
    const Input logits = float_input(name, "logits", logits_object);
    const Input targets = input(name, "targets", targets_object, Layout::contiguous);
    const DType dtype = logits.view.dtype, type = ops::statistics_type(dtype);
    const ops::CrossEntropy call = cross_entropy_call(name, logits, targets, ignore_index, label_smoothing, reduction);
    const Input lse = input(name, "lse", lse_object, Layout::contiguous);
    if (lse.view.dtype != type)
        fail_type(name, std::string("lse must have dtype ") + name_of(type) + ", got " + name_of(lse.view.dtype));
    ops::require_shape(name, "lse", lse.view, targets.view.shape);
    // A number or an array of any float dtype, in the type of the loss.
    py::object converted;
    try {
        converted = py::module_::import("numpy").attr("asarray")(dloss_object, py::arg("dtype") = dtype_of(type));
    } catch (py::error_already_set &) {
        fail_type(name, "dloss must be a number or an array, got " + type_name(dloss_object));
    }
    const Input dloss = input(name, "dloss", converted, Layout::contiguous);
    if (dloss.view.ndim() != 0 || call.reduction == ops::Reduction::none)
        if (dloss.view.ndim() != 0 || call.loss_shape().empty())
            ops::require_shape(name, "dloss", dloss.view, call.loss_shape());

    std::optional<Input> given;
    if (!out_object.is_none()) {
        given = output(name, "out", out_object);
        require_same_dtype(name, "out", given->view, dtype);
        ops::require_shape(name, "out", given->view, logits.view.shape);
    }
    Result result = given ? Result(*given, false, {&targets.view, &lse.view, &dloss.view}, &logits.view)
                          : Result(allocate(logits.view.shape, dtype));
    {
        py::gil_scoped_release release;
        call.run_backward(dloss.view, lse.view, result.view());
    }
    return result.finish();
}

} // namespace

void bind_rowwise(py::module_ &m) {
    define(m, "softmax(x: numpy.ndarray, axis: int, /) -> numpy.ndarray", &softmax);
    define(m, "softmax_backward(dy: numpy.ndarray, y: numpy.ndarray, axis: int, /) -> numpy.ndarray",
           &softmax_backward);
    define(m,
           "layer_norm(x: numpy.ndarray, weight: numpy.ndarray | None, bias: numpy.ndarray | None, eps: float, "
           "return_stats: bool, /) -> typing.Any",
           &layer_norm);
    define(m,
           "layer_norm_backward(dy: numpy.ndarray, x: numpy.ndarray, mean: numpy.ndarray, rstd: numpy.ndarray, weight: "
           "numpy.ndarray | None, bias: bool, residual: numpy.ndarray | None, /) -> tuple[numpy.ndarray, numpy.ndarray "
           "| None, numpy.ndarray | None]",
           &layer_norm_backward);
    define(m,
           "rms_norm(x: numpy.ndarray, weight: numpy.ndarray | None, eps: float, return_stats: bool, /) -> typing.Any",
           &rms_norm);
    define(m,
           "rms_norm_backward(dy: numpy.ndarray, x: numpy.ndarray, rstd: numpy.ndarray, weight: numpy.ndarray | None, "
           "residual: numpy.ndarray | None, /) -> tuple[numpy.ndarray, numpy.ndarray | None]",
           &rms_norm_backward);
    define(m,
           "cross_entropy(logits: numpy.ndarray, targets: numpy.ndarray, ignore_index: int, label_smoothing: float, "
           "reduction: str, return_lse: bool, /) -> typing.Any",
           &cross_entropy);
    define(m,
           "cross_entropy_backward(dloss: object, logits: numpy.ndarray, targets: numpy.ndarray, lse: numpy.ndarray, "
           "ignore_index: int, label_smoothing: float, reduction: str, out: numpy.ndarray | None, /) -> numpy.ndarray",
           &cross_entropy_backward);
}

} // namespace nf::bindings
