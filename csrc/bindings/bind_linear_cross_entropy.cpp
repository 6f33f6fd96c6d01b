#include "bindings/scalars.hpp"
#include "ops/linear_cross_entropy.hpp"

namespace nf::bindings {
namespace {

constexpr const char *kName = "linear_cross_entropy";

// A gradient that is summed over rows: the caller's array, or a new one of dtype.
Result sum_result(const char *argument, py::handle object, const Shape &shape, DType dtype, bool accumulate,
                  std::initializer_list<const View *> inputs) {
    const std::optional<Input> given = sum_output(kName, argument, object, dtype, accumulate);
    if (!given)
        return Result(allocate(shape, dtype));
    ops::require_shape(kName, argument, given->view, shape);
    return Result(*given, accumulate, inputs);
}

py::object linear_cross_entropy(py::handle x_object, py::handle weight_object, py::handle targets_object,
                                py::handle bias_object, py::handle ignore_index, py::handle label_smoothing,
                                py::handle reduction, py::handle dloss, py::handle gradients_object,
                                py::handle dweight_object, py::handle dbias_object, py::handle accumulate_object,
                                py::handle chunk) {
    const Input x = float_input(kName, "x", x_object);
    const DType dtype = x.view.dtype;
    const Input weight = input(kName, "weight", weight_object, Layout::matrix);
    require_float(kName, "weight", weight.view);
    require_same_dtype(kName, "weight", weight.view, dtype);
    const Input targets = input(kName, "targets", targets_object, Layout::contiguous);
    const std::optional<Input> bias = optional_input(kName, "bias", bias_object, Layout::contiguous);
    if (bias && (bias->view.dtype != DType::f32 || dtype == DType::f64)) // float32 may accompany the 16-bit types
        require_same_dtype(kName, "bias", bias->view, dtype);

    ops::LinearCrossEntropy call;
    call.x = x.view;
    call.weight = weight.view;
    call.targets = targets.view;
    call.bias = pointer_to(bias);
    call.ignore_index = integer(kName, "ignore_index", ignore_index);
    call.label_smoothing = number(kName, "label_smoothing", label_smoothing);
    call.reduction = ops::reduction_from(kName, text(kName, "reduction", reduction));
    call.dloss = number(kName, "dloss", dloss);
    if (!chunk.is_none()) {
        call.chunk = integer(kName, "chunk", chunk);
        if (call.chunk < 1)
            fail_value(kName, "chunk must be at least 1, got " + std::to_string(call.chunk));
    }
    const bool gradients = boolean(kName, "gradients", gradients_object);
    const bool accumulate = boolean(kName, "accumulate", accumulate_object);
    if (!gradients && (accumulate || !dweight_object.is_none() || !dbias_object.is_none()))
        fail_value(kName, "dweight, dbias and accumulate need gradients=True");
    if (!bias && !dbias_object.is_none())
        fail_value(kName, "dbias needs bias, got None");
    call.check();

    const DType type = ops::statistics_type(dtype);
    auto scalar = [&](double loss) { return dtype_of(type).attr("type")(loss); };
    double loss = 0;
    if (!gradients) {
        {
            py::gil_scoped_release release;
            loss = call.run(nullptr, nullptr, nullptr, false);
        }
        return scalar(loss);
    }
    const std::initializer_list<const View *> inputs = {&x.view, &weight.view, &targets.view,
                                                        bias ? &bias->view : &x.view};
    Result dweight = sum_result("dweight", dweight_object, weight.view.shape, dtype, accumulate, inputs);
    std::optional<Result> dbias;
    if (bias)
        dbias.emplace(sum_result("dbias", dbias_object, bias->view.shape, bias->view.dtype, accumulate, inputs));
    const Input dx = allocate(x.view.shape, dtype);
    {
        py::gil_scoped_release release;
        loss = call.run(&dx.view, &dweight.view(), dbias ? &dbias->view() : nullptr, accumulate);
    }
    if (dbias)
        return py::make_tuple(scalar(loss), dx.array, dweight.finish(), dbias->finish());
    return py::make_tuple(scalar(loss), dx.array, dweight.finish());
}

} // namespace

void bind_linear_cross_entropy(py::module_ &m) {
    define(m,
           "linear_cross_entropy(x: numpy.ndarray, weight: numpy.ndarray, targets: numpy.ndarray, bias: numpy.ndarray "
           "| None, ignore_index: int, label_smoothing: float, reduction: str, dloss: float, gradients: bool, dweight: "
           "numpy.ndarray | None, dbias: numpy.ndarray | None, accumulate: bool, chunk: int | None, /) -> typing.Any",
           &linear_cross_entropy);
}

} // namespace nf::bindings
