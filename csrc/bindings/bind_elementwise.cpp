#include "bindings/scalars.hpp"
#include "ops/elementwise.hpp"

namespace nf::bindings {
namespace {

py::object activation(const char *name, Activation kind, py::handle x_object) {
    const Input x = float_input(name, "x", x_object);
    Input y = allocate(x.view.shape, x.view.dtype);
    {
        py::gil_scoped_release release;
        ops::run_activation(name, kind, x.view, y.view);
    }
    return y.array;
}

py::object activation_backward(const char *name, Activation kind, py::handle dy_object, py::handle x_object) {
    const Input dy = float_input(name, "dy", dy_object);
    const Input x = float_input(name, "x", x_object, dy.view.dtype);
    ops::require_shape(name, "x", x.view, dy.view.shape);
    Input dx = allocate(x.view.shape, x.view.dtype);
    {
        py::gil_scoped_release release;
        ops::run_activation_backward(name, kind, dy.view, x.view, dx.view);
    }
    return dx.array;
}

Activation gelu_kind(const char *name, py::handle approximate) {
    const std::string value = text(name, "approximate", approximate);
    if (value == "none")
        return Activation::gelu;
    if (value == "tanh")
        return Activation::gelu_tanh;
    fail_value(name, "approximate must be 'none' or 'tanh', got '" + value + "'");
}

py::object add(py::handle a_object, py::handle b_object) {
    const char *name = "add";
    const Input a = float_input(name, "a", a_object);
    const Input b = wide_input(name, "b", b_object, a.view.dtype);
    ops::check_add(a.view, b.view);
    Input out = allocate(a.view.shape, a.view.dtype);
    {
        py::gil_scoped_release release;
        ops::run_add(a.view, b.view, out.view);
    }
    return out.array;
}

py::object cast(py::handle x_object, py::handle dtype_object, py::handle scale_object, py::handle out_object) {
    const char *name = "cast";
    const Input x = float_input(name, "x", x_object);
    const DType dtype = dtype_from(name, "dtype", dtype_object);
    const double scale = number(name, "scale", scale_object);
    std::optional<Input> given;
    if (!out_object.is_none()) {
        given = output(name, "out", out_object);
        require_same_dtype(name, "out", given->view, dtype);
        ops::require_shape(name, "out", given->view, x.view.shape);
    }
    Input fresh = given ? *given : allocate(x.view.shape, dtype);
    require_float(name, "dtype", fresh.view);
    Result result =
        given ? (x.view.dtype == dtype ? Result(*given, false, {}, &x.view) : Result(*given, false, {&x.view}))
              : Result(std::move(fresh));
    {
        py::gil_scoped_release release;
        ops::run_cast(x.view, scale, result.view());
    }
    return result.finish();
}

py::object sum_rows(py::handle x_object, py::handle accumulate_object, py::handle out_object) {
    const char *name = "sum_rows";
    const Input x = float_input(name, "x", x_object);
    ops::require_axes(name, "x", x.view, 1);
    const bool accumulate = boolean(name, "accumulate", accumulate_object);
    const Shape shape = {x.view.shape.back()};
    const std::optional<Input> given = sum_output(name, "out", out_object, x.view.dtype, accumulate);
    if (given)
        ops::require_shape(name, "out", given->view, shape);
    Result result = given ? Result(*given, accumulate, {&x.view}) : Result(allocate(shape, x.view.dtype));
    {
        py::gil_scoped_release release;
        ops::run_sum_rows(x.view, accumulate, result.view());
    }
    return result.finish();
}

py::object embedding(py::handle weight_object, py::handle ids_object) {
    const Input weight = float_input("embedding", "weight", weight_object);
    const Input ids = input("embedding", "ids", ids_object, Layout::contiguous);
    Input out = allocate(ops::check_embedding(weight.view, ids.view), weight.view.dtype);
    {
        py::gil_scoped_release release;
        ops::run_embedding(weight.view, ids.view, out.view);
    }
    return out.array;
}

py::object embedding_backward(py::handle dy_object, py::handle ids_object, py::handle num_embeddings,
                              py::handle accumulate_object, py::handle out_object) {
    const char *name = "embedding_backward";
    const Input dy = float_input(name, "dy", dy_object);
    const Input ids = input(name, "ids", ids_object, Layout::contiguous);
    const bool accumulate = boolean(name, "accumulate", accumulate_object);
    const Shape shape =
        ops::check_embedding_backward(dy.view, ids.view, integer(name, "num_embeddings", num_embeddings));
    const std::optional<Input> given = sum_output(name, "out", out_object, dy.view.dtype, accumulate);
    if (given)
        ops::require_shape(name, "out", given->view, shape);
    Result result = given ? Result(*given, accumulate, {&dy.view, &ids.view}) : Result(allocate(shape, dy.view.dtype));
    {
        py::gil_scoped_release release;
        ops::run_embedding_backward(dy.view, ids.view, accumulate, result.view());
    }
    return result.finish();
}

py::object dropout(const char *name, const char *argument, py::handle x_object, py::handle p, py::handle seed,
                   py::handle layer, py::handle step, py::handle sample, py::handle residual_object,
                   py::handle starts_object) {
    const Input x = float_input(name, argument, x_object);
    const std::optional<Input> residual = optional_float_input(name, "residual", residual_object, x.view.dtype);
    const std::optional<Input> starts = optional_input(name, "cu_seqlens", starts_object, Layout::contiguous);
    ops::Dropout call{name,
                      number(name, "p", p),
                      integer(name, "seed", seed),
                      integer(name, "layer", layer),
                      integer(name, "step", step),
                      integer(name, "sample", sample)};
    call.check(x.view, pointer_to(residual), pointer_to(starts));
    Input out = allocate(x.view.shape, x.view.dtype);
    {
        py::gil_scoped_release release;
        call.run(x.view, pointer_to(residual), out.view);
    }
    return out.array;
}

} // namespace

void bind_elementwise(py::module_ &m) {
    define(m, "relu(x: numpy.ndarray, /) -> numpy.ndarray",
           [](py::handle x) { return activation("relu", Activation::relu, x); });
    define(m, "silu(x: numpy.ndarray, /) -> numpy.ndarray",
           [](py::handle x) { return activation("silu", Activation::silu, x); });
    define(m, "gelu(x: numpy.ndarray, approximate: str, /) -> numpy.ndarray",
           [](py::handle x, py::handle approximate) { return activation("gelu", gelu_kind("gelu", approximate), x); });
    define(m, "relu_backward(dy: numpy.ndarray, x: numpy.ndarray, /) -> numpy.ndarray",
           [](py::handle dy, py::handle x) { return activation_backward("relu_backward", Activation::relu, dy, x); });
    define(m, "silu_backward(dy: numpy.ndarray, x: numpy.ndarray, /) -> numpy.ndarray",
           [](py::handle dy, py::handle x) { return activation_backward("silu_backward", Activation::silu, dy, x); });
    define(m, "gelu_backward(dy: numpy.ndarray, x: numpy.ndarray, approximate: str, /) -> numpy.ndarray",
           [](py::handle dy, py::handle x, py::handle approximate) {
               return activation_backward("gelu_backward", gelu_kind("gelu_backward", approximate), dy, x);
           });
    define(m, "add(a: numpy.ndarray, b: numpy.ndarray, /) -> numpy.ndarray", &add);
    define(m, "cast(x: numpy.ndarray, dtype: object, scale: float, out: numpy.ndarray | None, /) -> numpy.ndarray",
           &cast);
    define(m, "sum_rows(x: numpy.ndarray, accumulate: bool, out: numpy.ndarray | None, /) -> numpy.ndarray", &sum_rows);
    define(m, "embedding(weight: numpy.ndarray, ids: numpy.ndarray, /) -> numpy.ndarray", &embedding);
    define(m,
           "embedding_backward(dy: numpy.ndarray, ids: numpy.ndarray, num_embeddings: int, accumulate: bool, out: "
           "numpy.ndarray | None, /) -> numpy.ndarray",
           &embedding_backward);
    define(m,
           "dropout(x: numpy.ndarray, p: float, seed: int, layer: int, step: int, sample: int, residual: numpy.ndarray "
           "| None, cu_seqlens: numpy.ndarray | None, /) -> numpy.ndarray",
           [](py::handle x, py::handle p, py::handle seed, py::handle layer, py::handle step, py::handle sample,
              py::handle residual, py::handle cu_seqlens) {
               return dropout("dropout", "x", x, p, seed, layer, step, sample, residual, cu_seqlens);
           });
    define(m,
           "dropout_backward(dy: numpy.ndarray, p: float, seed: int, layer: int, step: int, sample: int, cu_seqlens: "
           "numpy.ndarray | None, /) -> numpy.ndarray",
           [](py::handle dy, py::handle p, py::handle seed, py::handle layer, py::handle step, py::handle sample,
              py::handle cu_seqlens) {
               return dropout("dropout_backward", "dy", dy, p, seed, layer, step, sample, py::none(), cu_seqlens);
           });
}

} // namespace nf::bindings
