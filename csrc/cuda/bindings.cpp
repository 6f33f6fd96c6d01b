// The native module of the CUDA backend; README.md beside says what its functions take. Compiled twice: for CUDA, and
// for the host by the tests.
#include "bindings/errors.hpp"
#include "cuda/api.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <tuple>
#ifndef NUMFORMER_CUDA_HOST
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace nf::cuda {
namespace {

// ---- from Python

std::string shape_text(const Shape &shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i)
        text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

const char *dtype_text(DType dtype) { return kDTypeName[int(dtype)]; }

// An argument of an operation, to be checked.
struct Argument {
    const char *operation;
    std::string name;
    [[noreturn]] void fail_type(const std::string &expected, const std::string &got) const {
        nf::fail_type(operation, name + " must " + expected + ", got " + got);
    }
    [[noreturn]] void fail_value(const std::string &expected, const std::string &got) const {
        nf::fail_value(operation, name + " must " + expected + ", got " + got);
    }
};

// A call has up to ten arrays, and a list of an update hundreds: they are read by Python's own functions, which take a
// tenth of the time of pybind11's casts.
Shape integers_of(py::handle object) {
    if (!PyTuple_Check(object.ptr()))
        return py::cast<Shape>(object);
    Shape values(size_t(PyTuple_GET_SIZE(object.ptr())));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(object.ptr(), Py_ssize_t(i)));
        if (values[i] == -1 && PyErr_Occurred())
            throw py::error_already_set();
    }
    return values;
}

Array array_of(const Argument &argument, py::handle object) {
    if (!PyTuple_Check(object.ptr()) || PyTuple_GET_SIZE(object.ptr()) != 4)
        argument.fail_type("be (pointer, shape, strides, dtype)",
                           py::cast<std::string>(py::str(py::type::of(object).attr("__name__"))));
    const auto part = [&](int i) { return py::handle(PyTuple_GET_ITEM(object.ptr(), i)); };
    Array array;
    array.data = reinterpret_cast<void *>(py::cast<uintptr_t>(part(0)));
    array.shape = integers_of(part(1));
    if (part(2).is_none()) { // in C order
        array.strides.resize(array.shape.size());
        int64_t stride = 1;
        for (size_t axis = array.shape.size(); axis-- > 0; stride *= array.shape[axis])
            array.strides[axis] = stride;
    } else {
        array.strides = integers_of(part(2));
    }
    const char *name = PyUnicode_AsUTF8(part(3).ptr());
    if (!name)
        throw py::error_already_set();
    int dtype = 0;
    while (dtype <= int(DType::boolean) && std::strcmp(name, kDTypeName[dtype]) != 0)
        ++dtype;
    if (dtype > int(DType::boolean))
        argument.fail_type("have a dtype that is known here", name);
    array.dtype = DType(dtype);
    if (array.shape.size() != array.strides.size())
        argument.fail_value("have a stride for each axis",
                            shape_text(array.shape) + " and " + shape_text(array.strides));
    for (int64_t n : array.shape)
        if (n < 0)
            argument.fail_value("have no negative axis", shape_text(array.shape));
    return array;
}

bool is_contiguous(const Array &array) {
    int64_t expected = 1;
    for (int axis = array.ndim() - 1; axis >= 0; --axis) {
        if (array.shape[size_t(axis)] != 1 && array.strides[size_t(axis)] != expected)
            return array.size() == 0;
        expected *= array.shape[size_t(axis)];
    }
    return true;
}

Array contiguous(const Argument &argument, py::handle object) {
    const Array array = array_of(argument, object);
    if (!is_contiguous(array))
        argument.fail_value("be in C order", "strides " + shape_text(array.strides) + " of " + shape_text(array.shape));
    return array;
}

void require_dtype(const Argument &argument, const Array &array, DType dtype) {
    if (array.dtype != dtype)
        argument.fail_type(std::string("have dtype ") + dtype_text(dtype), dtype_text(array.dtype));
}
void require_shape(const Argument &argument, const Array &array, const Shape &shape) {
    if (array.shape != shape)
        argument.fail_value("have shape " + shape_text(shape), shape_text(array.shape));
}

// The arguments of one operation.
class Arguments {
  public:
    explicit Arguments(const char *operation) : operation_(operation) {}
    Argument operator[](const char *name) const { return {operation_, name}; }
    const char *operation() const { return operation_; }

    // In C order, of any float dtype, with a last axis.
    Array floats(const char *name, py::handle object, int least_axes = 0) const {
        const Argument argument = (*this)[name];
        const Array array = contiguous(argument, object);
        if (!is_float(array.dtype))
            argument.fail_type("have a float dtype", dtype_text(array.dtype));
        if (array.ndim() < least_axes)
            argument.fail_value("have at least " + std::to_string(least_axes) + " axes", shape_text(array.shape));
        return array;
    }
    // In C order, or a matrix whose rows are apart.
    Array matrix(const char *name, py::handle object) const {
        const Argument argument = (*this)[name];
        const Array array = array_of(argument, object);
        if (!is_float(array.dtype))
            argument.fail_type("have a float dtype", dtype_text(array.dtype));
        if (array.ndim() < 1)
            argument.fail_value("have at least 1 axes", shape_text(array.shape));
        const bool is_apart = array.ndim() == 2 && array.strides[1] == 1 && array.strides[0] >= array.shape[1];
        if (!is_apart && !is_contiguous(array))
            argument.fail_value("be in C order, or a matrix with unit stride on its last axis",
                                "strides " + shape_text(array.strides) + " of " + shape_text(array.shape));
        return array;
    }
    Array matrix_like(const char *name, py::handle object, DType dtype, const Shape &shape) const {
        const Array array = matrix(name, object);
        require_dtype((*this)[name], array, dtype);
        require_shape((*this)[name], array, shape);
        return array;
    }
    Array like(const char *name, py::handle object, DType dtype, const Shape &shape) const {
        const Argument argument = (*this)[name];
        const Array array = contiguous(argument, object);
        require_dtype(argument, array, dtype);
        require_shape(argument, array, shape);
        return array;
    }
    MaybeArray maybe_like(const char *name, py::handle object, DType dtype, const Shape &shape) const {
        if (object.is_none())
            return std::nullopt;
        return like(name, object, dtype, shape);
    }
    void require_wide(const char *name, const Array &array, DType dtype) const {
        if (array.dtype != dtype && !(is_half(dtype) && array.dtype == DType::f32))
            (*this)[name].fail_type(std::string("have dtype ") + dtype_text(dtype) +
                                        (is_half(dtype) ? " or float32" : ""),
                                    dtype_text(array.dtype));
    }
    // Of `dtype`, or float32 beside a 16-bit one.
    Array wide(const char *name, py::handle object, DType dtype, const Shape &shape) const {
        const Array array = contiguous((*this)[name], object);
        require_wide(name, array, dtype);
        require_shape((*this)[name], array, shape);
        return array;
    }
    MaybeArray maybe_wide(const char *name, py::handle object, DType dtype, const Shape &shape) const {
        if (object.is_none())
            return std::nullopt;
        return wide(name, object, dtype, shape);
    }
    Array integers(const char *name, py::handle object) const {
        const Array array = contiguous((*this)[name], object);
        if (array.dtype != DType::i32 && array.dtype != DType::i64)
            (*this)[name].fail_type("have dtype int32 or int64", dtype_text(array.dtype));
        return array;
    }
    // All of these that are given have one dtype.
    void require_one_dtype(std::initializer_list<std::pair<const char *, const MaybeArray *>> arrays) const {
        const Array *first = nullptr;
        for (const auto &[name, array] : arrays) {
            if (!*array)
                continue;
            if (first)
                require_dtype((*this)[name], **array, first->dtype);
            else
                first = &**array;
        }
    }

  private:
    const char *operation_;
};

Shape leading(const Shape &shape) { return Shape(shape.begin(), shape.end() - 1); }

Stream stream_of(uintptr_t stream) { return reinterpret_cast<Stream>(stream); }

Allocate allocate_by(py::object callable) {
    return [callable](int64_t bytes) {
        void *memory = reinterpret_cast<void *>(py::cast<uintptr_t>(callable(bytes)));
        if (!memory && bytes > 0)
            throw std::bad_alloc();
        return memory;
    };
}

// ---- norms, element by element

NormInputs norm_inputs(const Arguments &arguments, py::handle x, py::handle weight, py::handle bias, bool centred) {
    NormInputs in{arguments.operation(), arguments.floats("x", x, 1), {}, {}, centred};
    if (in.x.columns() == 0)
        arguments["x"].fail_value("have a last axis of at least 1", shape_text(in.x.shape));
    const Shape row = {in.x.columns()};
    in.weight = arguments.maybe_wide("weight", weight, in.x.dtype, row);
    in.bias = arguments.maybe_wide("bias", bias, in.x.dtype, row);
    arguments.require_one_dtype({{"weight", &in.weight}, {"bias", &in.bias}});
    return in;
}

void run_norm(const char *operation, bool centred, py::handle out, py::handle mean, py::handle rstd, py::handle x,
              py::handle weight, py::handle bias, double eps, uintptr_t stream) {
    const Arguments arguments(operation);
    const NormInputs in = norm_inputs(arguments, x, weight, bias, centred);
    const DType statistics = acc_of(in.x.dtype);
    const Shape rows = leading(in.x.shape);
    norm(in, arguments.like("out", out, in.x.dtype, in.x.shape), arguments.maybe_like("mean", mean, statistics, rows),
         arguments.maybe_like("rstd", rstd, statistics, rows), eps, stream_of(stream));
}

void run_norm_backward(const char *operation, bool centred, py::handle dx, py::handle dweight, py::handle dbias,
                       py::handle dy, py::handle x, py::handle mean, py::handle rstd, py::handle weight,
                       py::handle residual, py::object allocate, uintptr_t stream) {
    const Arguments arguments(operation);
    const NormInputs in = norm_inputs(arguments, x, weight, py::none(), centred);
    const DType type = in.x.dtype, statistics = acc_of(type);
    const Shape rows = leading(in.x.shape), row = {in.x.columns()};
    const MaybeArray to_weight = arguments.maybe_wide("dweight", dweight, type, row),
                     to_bias = arguments.maybe_wide("dbias", dbias, type, row);
    arguments.require_one_dtype({{"weight", &in.weight}, {"dweight", &to_weight}, {"dbias", &to_bias}});
    MaybeArray centre;
    if (centred)
        centre = arguments.like("mean", mean, statistics, rows);
    norm_backward(
        in, arguments.like("dy", dy, type, in.x.shape), centre, arguments.like("rstd", rstd, statistics, rows),
        arguments.maybe_like("residual", residual, type, in.x.shape), arguments.like("dx", dx, type, in.x.shape),
        to_weight, to_bias, allocate_by(allocate), stream_of(stream));
}

int activation_named(const Arguments &arguments, const std::string &name) {
    const char *const names[] = {"relu", "gelu", "gelu_tanh", "silu"};
    for (int i = 0; i < 4; ++i)
        if (name == names[i])
            return i + 1;
    arguments["name"].fail_value("be 'relu', 'gelu', 'gelu_tanh' or 'silu'", "'" + name + "'");
}

uint32_t word(const Arguments &arguments, const char *name, int64_t value) {
    if (value < 0 || value > int64_t(0xffffffff))
        arguments[name].fail_value("be in [0, 2**32)", std::to_string(value));
    return uint32_t(value);
}
double probability(const Arguments &arguments, const char *name, double p) {
    if (!(p >= 0 && p <= 1))
        arguments[name].fail_value("be in [0, 1]", std::to_string(p));
    return p;
}

void bind_rows(py::module_ &m) {
    m.def("layer_norm", [](py::object out, py::object mean, py::object rstd, py::object x, py::object weight,
                           py::object bias, double eps, uintptr_t stream) {
        run_norm("layer_norm", true, out, mean, rstd, x, weight, bias, eps, stream);
    });
    m.def("rms_norm",
          [](py::object out, py::object rstd, py::object x, py::object weight, double eps, uintptr_t stream) {
              run_norm("rms_norm", false, out, py::none(), rstd, x, weight, py::none(), eps, stream);
          });
    m.def("layer_norm_backward",
          [](py::object dx, py::object dweight, py::object dbias, py::object dy, py::object x, py::object mean,
             py::object rstd, py::object weight, py::object residual, py::object allocate, uintptr_t stream) {
              run_norm_backward("layer_norm_backward", true, dx, dweight, dbias, dy, x, mean, rstd, weight, residual,
                                allocate, stream);
          });
    m.def("rms_norm_backward", [](py::object dx, py::object dweight, py::object dy, py::object x, py::object rstd,
                                  py::object weight, py::object residual, py::object allocate, uintptr_t stream) {
        run_norm_backward("rms_norm_backward", false, dx, dweight, py::none(), dy, x, py::none(), rstd, weight,
                          residual, allocate, stream);
    });
    m.def("softmax", [](py::object out, py::object x, uintptr_t stream) {
        const Arguments arguments("softmax");
        const Array from = arguments.floats("x", x, 1);
        softmax(arguments.like("out", out, from.dtype, from.shape), from, stream_of(stream));
    });
    m.def("softmax_backward", [](py::object dx, py::object dy, py::object y, uintptr_t stream) {
        const Arguments arguments("softmax_backward");
        const Array from = arguments.floats("y", y, 1);
        softmax_backward(arguments.like("dx", dx, from.dtype, from.shape),
                         arguments.like("dy", dy, from.dtype, from.shape), from, stream_of(stream));
    });
}

void bind_elements(py::module_ &m) {
    m.def("activation", [](py::object out, py::object x, const std::string &name, uintptr_t stream) {
        const Arguments arguments("activation");
        const Array from = arguments.floats("x", x);
        activation(arguments.like("out", out, from.dtype, from.shape), from, activation_named(arguments, name),
                   stream_of(stream));
    });
    m.def("activation_backward",
          [](py::object dx, py::object dy, py::object x, const std::string &name, uintptr_t stream) {
              const Arguments arguments("activation_backward");
              const Array from = arguments.floats("x", x);
              activation_backward(arguments.like("dx", dx, from.dtype, from.shape),
                                  arguments.like("dy", dy, from.dtype, from.shape), from,
                                  activation_named(arguments, name), stream_of(stream));
          });
    m.def("add", [](py::object out, py::object a, py::object b, uintptr_t stream) {
        const Arguments arguments("add");
        const Array first = arguments.floats("a", a), second = arguments.floats("b", b);
        arguments.require_wide("b", second, first.dtype);
        const int missing = first.ndim() - second.ndim();
        if (missing < 0 || !std::equal(second.shape.begin(), second.shape.end(), first.shape.begin() + missing))
            arguments["b"].fail_value("have the last axes of a, " + shape_text(first.shape), shape_text(second.shape));
        const Array to = arguments.like("out", out, first.dtype, first.shape);
        if (first.size() > 0)
            add(to, first, second, stream_of(stream));
    });
    m.def("cast", [](py::object out, py::object x, double scale, uintptr_t stream) {
        const Arguments arguments("cast");
        const Array from = arguments.floats("x", x), to = arguments.floats("out", out);
        require_shape(arguments["out"], to, from.shape);
        cast(to, from, scale, stream_of(stream));
    });
    m.def("sum_rows", [](py::object out, py::object x, bool accumulate, py::object allocate, uintptr_t stream) {
        const Arguments arguments("sum_rows");
        const Array from = arguments.matrix("x", x);
        sum_rows(arguments.wide("out", out, from.dtype, {from.columns()}), from, accumulate, allocate_by(allocate),
                 stream_of(stream));
    });
    m.def("dropout", [](py::object out, py::object x, py::object residual, double p, int64_t seed, int64_t layer,
                        int64_t step, int64_t sample, int64_t samples, py::object starts, uintptr_t stream) {
        const Arguments arguments("dropout");
        const Array from = arguments.floats("x", x);
        const DropoutKey key{probability(arguments, "p", p), word(arguments, "seed", seed),
                             word(arguments, "layer", layer), word(arguments, "step", step),
                             word(arguments, "sample", sample)};
        if (samples < 0 || (from.size() > 0 && (samples == 0 || (starts.is_none() && from.size() % samples != 0))))
            arguments["samples"].fail_value("divide the elements of x", std::to_string(samples));
        const Array to = arguments.like("out", out, from.dtype, from.shape);
        const MaybeArray more = arguments.maybe_like("residual", residual, from.dtype, from.shape),
                         begins = arguments.maybe_like("starts", starts, DType::i64, {samples + 1});
        if (from.size() > 0)
            dropout(to, from, more, key, samples, begins, stream_of(stream));
    });
}

// ---- attention

constexpr int kMostAxes = 7; // 4 leading ones, heads, rows, columns

// Float, unit stride on the last axis.
Array operand(const Arguments &arguments, const char *name, py::handle object) {
    const Array array = array_of(arguments[name], object);
    if (!is_float(array.dtype))
        arguments[name].fail_type("have a float dtype", dtype_text(array.dtype));
    if (array.ndim() < 2 || array.ndim() > kMostAxes)
        arguments[name].fail_value("have 2 to " + std::to_string(kMostAxes) + " axes", shape_text(array.shape));
    if (array.size() > 0 && array.shape.back() > 1 && array.strides.back() != 1)
        arguments[name].fail_value("have unit stride on its last axis", shape_text(array.strides));
    return array;
}
Array operand_like(const Arguments &arguments, const char *name, py::handle object, DType dtype, const Shape &shape) {
    const Array array = operand(arguments, name, object);
    require_dtype(arguments[name], array, dtype);
    require_shape(arguments[name], array, shape);
    return array;
}

MaybeArray pairs(const Arguments &arguments, const char *name, py::handle object, const Shape &full) {
    if (object.is_none())
        return std::nullopt;
    const Array array = array_of(arguments[name], object);
    const int missing = int(full.size()) - array.ndim();
    bool fits = missing >= 0;
    for (int axis = 0; fits && axis < array.ndim(); ++axis)
        fits = array.shape[size_t(axis)] == 1 || array.shape[size_t(axis)] == full[size_t(axis + missing)];
    if (!fits)
        arguments[name].fail_value("broadcast to " + shape_text(full), shape_text(array.shape));
    return array;
}

py::object option(const py::dict &options, const char *name) {
    return options.contains(name) ? py::object(options[name]) : py::object(py::none());
}

// (r, u, v, origin). That r has a row for each distance, numformer_cuda has checked.
RelativeInputs relative_inputs(const Arguments &arguments, const py::object &rel, const AttentionInputs &in,
                               int64_t heads) {
    const py::tuple parts = py::cast<py::tuple>(rel);
    const int64_t dim = in.q.shape.back();
    if (in.query_starts)
        arguments["rel"].fail_value("be None with cu_seqlens_q", "a tuple");
    if (parts.size() != 4)
        arguments["rel"].fail_value("be (r, u, v, origin)", std::to_string(parts.size()) + " elements");
    const Array r = operand(arguments, "rel's r", parts[0]);
    require_dtype(arguments["rel's r"], r, in.q.dtype);
    if (r.ndim() != 3 || r.shape[0] != heads || r.shape[2] != dim)
        arguments["rel's r"].fail_value("have shape (" + std::to_string(heads) + ", L, " + std::to_string(dim) + ")",
                                        shape_text(r.shape));
    return {r, arguments.wide("rel's u", parts[1], in.q.dtype, {heads, dim}),
            arguments.wide("rel's v", parts[2], in.q.dtype, {heads, dim}), py::cast<int64_t>(parts[3])};
}

AttentionInputs attention_inputs(const Arguments &arguments, py::handle q, py::handle k, py::handle v,
                                 const py::dict &options) {
    AttentionInputs in{};
    in.operation = arguments.operation();
    in.q = operand(arguments, "q", q);
    in.k = operand(arguments, "k", k);
    in.v = operand(arguments, "v", v);
    const size_t axes = in.q.shape.size();
    const int64_t dim = in.q.shape.back(), keys = in.k.shape[in.k.shape.size() - 2];
    const int64_t heads = axes > 2 ? in.q.shape[axes - 3] : 1;
    for (const auto &[name, array] : {std::pair<const char *, const Array &>{"k", in.k}, {"v", in.v}}) {
        require_dtype(arguments[name], array, in.q.dtype);
        bool fits = array.shape.size() == axes && array.shape[axes - 2] == keys;
        for (size_t axis = 0; fits && axis + 3 < axes; ++axis)
            fits = array.shape[axis] == in.q.shape[axis];
        if (!fits)
            arguments[name].fail_value("have the axes of q, " + shape_text(in.q.shape) + ", and the rows of k",
                                       shape_text(array.shape));
        const int64_t kv_heads = axes > 2 ? in.k.shape[axes - 3] : 1;
        if (axes > 2 && (array.shape[axes - 3] != kv_heads || (kv_heads == 0 ? heads != 0 : heads % kv_heads != 0)))
            arguments[name].fail_value("have a number of heads that divides q's, " + std::to_string(heads),
                                       shape_text(array.shape));
    }
    if (in.k.shape.back() != dim)
        arguments["k"].fail_value("have a last axis of " + std::to_string(dim), shape_text(in.k.shape));
    if (dim == 0)
        arguments["q"].fail_value("have a last axis of at least 1", shape_text(in.q.shape));

    for (const auto &item : options) {
        const std::string name = py::cast<std::string>(item.first);
        const char *const known[] = {"causal",       "window",       "mask",         "bias", "scale", "softcap",
                                     "alibi_slopes", "sinks",        "dropout",      "seed", "tf32",  "global_tokens",
                                     "global_rows",  "cu_seqlens_q", "cu_seqlens_k", "rel",  "kernel"};
        if (std::find(std::begin(known), std::end(known), name) == std::end(known) && !item.second.is_none())
            throw NotThere(std::string(arguments.operation()) + ": " + name + " is not there on a device");
    }
    const py::object causal = option(options, "causal"), window = option(options, "window");
    if (py::isinstance<py::str>(causal)) {
        const std::string alignment = py::cast<std::string>(causal);
        if (alignment != "bottom_right" && alignment != "top_left")
            arguments["causal"].fail_value("be False, True, 'bottom_right' or 'top_left'", "'" + alignment + "'");
        in.causal = true;
        in.top_left = alignment == "top_left";
    } else if (!causal.is_none()) {
        in.causal = py::cast<bool>(causal);
    }
    if (!window.is_none()) {
        const py::sequence sides = py::reinterpret_borrow<py::sequence>(window);
        in.left = py::cast<std::optional<int64_t>>(sides[0]);
        in.right = py::cast<std::optional<int64_t>>(sides[1]);
        for (const auto &side : {in.left, in.right})
            if (side && *side < 0)
                arguments["window"].fail_value("have sides that are None or not negative", std::to_string(*side));
    }
    const py::object starts = option(options, "cu_seqlens_q"), key_starts = option(options, "cu_seqlens_k");
    if (!starts.is_none() || !key_starts.is_none()) {
        in.query_starts = arguments.integers("cu_seqlens_q", starts);
        in.key_starts = arguments.integers("cu_seqlens_k", key_starts);
        if (in.query_starts->ndim() != 1 || in.query_starts->shape[0] == 0)
            arguments["cu_seqlens_q"].fail_value("have shape (S + 1,)", shape_text(in.query_starts->shape));
        require_shape(arguments["cu_seqlens_k"], *in.key_starts, in.query_starts->shape);
        if (axes != 3)
            arguments["q"].fail_value("have shape (H, total, D) with cu_seqlens_q", shape_text(in.q.shape));
    }
    Shape full = leading(in.q.shape);
    full.push_back(keys);
    in.mask = pairs(arguments, "mask", option(options, "mask"), full);
    if (in.mask)
        require_dtype(arguments["mask"], *in.mask, DType::boolean);
    in.bias = pairs(arguments, "bias", option(options, "bias"), full);
    if (in.bias)
        arguments.require_wide("bias", *in.bias, in.q.dtype);
    if (in.query_starts && (in.mask || in.bias))
        arguments[in.mask ? "mask" : "bias"].fail_value("be None with cu_seqlens_q", "an array");
    const py::object tokens = option(options, "global_tokens"), rows = option(options, "global_rows");
    if (!tokens.is_none()) {
        const Array global = array_of(arguments["global_tokens"], tokens);
        require_dtype(arguments["global_tokens"], global, DType::boolean);
        if (in.query_starts || in.q.shape[axes - 2] != keys)
            arguments["global_tokens"].fail_value("be None unless q and k have as many rows", shape_text(in.k.shape));
        Shape expected(in.q.shape.begin(), in.q.shape.end() - std::min<long>(3, long(axes)));
        expected.push_back(keys);
        require_shape(arguments["global_tokens"], global, expected);
        in.global = global;
        in.global_rows = rows.is_none() || py::cast<bool>(rows);
    }
    in.slopes = arguments.maybe_wide("alibi_slopes", option(options, "alibi_slopes"), in.q.dtype, {heads});
    in.sinks = arguments.maybe_wide("sinks", option(options, "sinks"), in.q.dtype, {heads});
    const py::object rel = option(options, "rel");
    if (!rel.is_none())
        in.relative = relative_inputs(arguments, rel, in, heads);
    const py::object scale = option(options, "scale"), softcap = option(options, "softcap");
    in.scale = scale.is_none() ? 1 / std::sqrt(double(dim)) : py::cast<double>(scale);
    if (!std::isfinite(in.scale))
        arguments["scale"].fail_value("be finite", std::to_string(in.scale));
    in.softcap = softcap.is_none() ? 0 : py::cast<double>(softcap);
    if (!softcap.is_none() && !(std::isfinite(in.softcap) && in.softcap > 0))
        arguments["softcap"].fail_value("be finite and greater than 0", std::to_string(in.softcap));
    const py::object dropout = option(options, "dropout"), seed = option(options, "seed");
    in.dropout.p = dropout.is_none() ? 0 : probability(arguments, "dropout", py::cast<double>(dropout));
    if (in.dropout.p > 0) {
        if (seed.is_none())
            arguments["seed"].fail_value("be given with dropout > 0", "None");
        const auto words = py::cast<std::vector<int64_t>>(seed);
        if (words.size() != 4)
            arguments["seed"].fail_value("be (seed, layer, step, sample)", std::to_string(words.size()) + " numbers");
        uint32_t *const to[] = {&in.dropout.seed, &in.dropout.layer, &in.dropout.step, &in.dropout.sample};
        for (int i = 0; i < 4; ++i)
            *to[i] = word(arguments, "seed", words[size_t(i)]);
    }
    const py::object tf32 = option(options, "tf32");
    in.tf32 = !tf32.is_none() && py::cast<bool>(tf32);
    const py::object kernel = option(options, "kernel");
    if (!kernel.is_none()) {
        in.kernel = py::cast<std::string>(kernel);
        if (in.kernel != "mma.sync" && in.kernel != "wgmma")
            arguments["kernel"].fail_value("be None, 'mma.sync' or 'wgmma'", "'" + in.kernel + "'");
    }
    return in;
}

void bind_attention(py::module_ &m) {
    m.def("attention", [](py::object out, py::object lse, py::object q, py::object k, py::object v,
                          const py::dict &options, py::object allocate, uintptr_t stream) {
        const Arguments arguments("attention");
        const AttentionInputs in = attention_inputs(arguments, q, k, v, options);
        Shape shape = in.q.shape;
        shape.back() = in.v.shape.back();
        return attention(in, operand_like(arguments, "out", out, in.q.dtype, shape),
                         arguments.maybe_like("lse", lse, acc_of(in.q.dtype), leading(shape)), allocate_by(allocate),
                         stream_of(stream));
    });
    m.def("attention_backward", [](py::object dq, py::object dk, py::object dv, py::object dout, py::object q,
                                   py::object k, py::object v, py::object out, py::object lse, py::object dlse,
                                   const py::dict &options, const py::dict &grads, py::object allocate,
                                   uintptr_t stream) {
        const Arguments arguments("attention_backward");
        const AttentionInputs in = attention_inputs(arguments, q, k, v, options);
        const DType type = in.q.dtype, statistics = acc_of(type);
        Shape shape = in.q.shape;
        shape.back() = in.v.shape.back();
        MaybeArray dsinks, dbias;
        std::optional<RelativeGradients> drelative;
        for (const auto &item : grads) {
            const std::string name = py::cast<std::string>(item.first);
            if (name == "rel") {
                if (!in.relative)
                    arguments["rel"].fail_value("be given where its gradient is wanted", "None");
                const py::tuple parts = py::cast<py::tuple>(item.second);
                if (parts.size() != 3)
                    arguments["rel"].fail_value("be (dr, du, dv)", std::to_string(parts.size()) + " elements");
                const RelativeInputs &of = *in.relative;
                drelative = {arguments.like("dr", parts[0], of.r.dtype, of.r.shape),
                             arguments.like("du", parts[1], of.u.dtype, of.u.shape),
                             arguments.like("dv", parts[2], of.v.dtype, of.v.shape)};
                continue;
            }
            if (name != "sinks" && name != "bias")
                throw NotThere("attention_backward: the gradient of " + name + " is not there on a device");
            const MaybeArray &of = name == "sinks" ? in.sinks : in.bias;
            if (!of)
                arguments[name.c_str()].fail_value("be given where its gradient is wanted", "None");
            (name == "sinks" ? dsinks : dbias) = arguments.like(name.c_str(), item.second, of->dtype, of->shape);
        }
        return attention_backward(
            in, operand_like(arguments, "dout", dout, type, shape), operand_like(arguments, "out", out, type, shape),
            arguments.like("lse", lse, statistics, leading(shape)),
            arguments.maybe_like("dlse", dlse, statistics, leading(shape)),
            operand_like(arguments, "dq", dq, type, in.q.shape), operand_like(arguments, "dk", dk, type, in.k.shape),
            operand_like(arguments, "dv", dv, type, in.v.shape), dsinks, dbias, drelative, allocate_by(allocate),
            stream_of(stream));
    });
}

// ---- losses, embedding

CrossEntropyInputs cross_entropy_inputs(const Arguments &arguments, const Array &logits, py::handle targets,
                                        int64_t ignore_index, double label_smoothing) {
    if (logits.columns() == 0)
        arguments["logits"].fail_value("have a last axis of at least 1", shape_text(logits.shape));
    const Array classes = arguments.integers("targets", targets);
    require_shape(arguments["targets"], classes, leading(logits.shape));
    if (!(label_smoothing >= 0 && label_smoothing <= 1))
        arguments["label_smoothing"].fail_value("be in [0, 1]", std::to_string(label_smoothing));
    return {logits, classes, ignore_index, label_smoothing};
}
bool is_mean(const Arguments &arguments, const std::string &reduction) {
    if (reduction != "mean" && reduction != "sum" && reduction != "none")
        arguments["reduction"].fail_value("be 'mean', 'sum' or 'none'", "'" + reduction + "'");
    return reduction == "mean";
}

void bind_losses(py::module_ &m) {
    m.def("cross_entropy", [](py::object loss, py::object losses, py::object lse, py::object logits, py::object targets,
                              int64_t ignore_index, double label_smoothing, const std::string &reduction,
                              uintptr_t stream) {
        const Arguments arguments("cross_entropy");
        const CrossEntropyInputs in =
            cross_entropy_inputs(arguments, arguments.matrix("logits", logits), targets, ignore_index, label_smoothing);
        const DType statistics = acc_of(in.logits.dtype);
        const bool mean = is_mean(arguments, reduction);
        cross_entropy(in, arguments.maybe_like("loss", loss, statistics, {}),
                      arguments.like("losses", losses, statistics, in.targets.shape),
                      arguments.like("lse", lse, statistics, in.targets.shape), mean, stream_of(stream));
    });
    m.def("cross_entropy_backward", [](py::object dlogits, py::object dloss, py::object logits, py::object targets,
                                       py::object lse, int64_t ignore_index, double label_smoothing,
                                       const std::string &reduction, py::object allocate, uintptr_t stream) {
        const Arguments arguments("cross_entropy_backward");
        const CrossEntropyInputs in = cross_entropy_inputs(arguments, arguments.floats("logits", logits, 1), targets,
                                                           ignore_index, label_smoothing);
        const DType statistics = acc_of(in.logits.dtype);
        const bool mean = is_mean(arguments, reduction);
        cross_entropy_backward(
            in, arguments.like("dlogits", dlogits, in.logits.dtype, in.logits.shape),
            arguments.like("dloss", dloss, statistics, reduction == "none" ? in.targets.shape : Shape()),
            arguments.like("lse", lse, statistics, in.targets.shape), mean, allocate_by(allocate), stream_of(stream));
    });
    m.def("cross_entropy_gradient",
          [](py::object losses, py::object dlogits, py::object logits, py::object targets, py::object count,
             int64_t ignore_index, double label_smoothing, double dloss, uintptr_t stream) {
              const Arguments arguments("cross_entropy_gradient");
              const Array to = arguments.matrix("dlogits", dlogits);
              const DType statistics = acc_of(to.dtype);
              const CrossEntropyInputs in =
                  cross_entropy_inputs(arguments, arguments.matrix_like("logits", logits, statistics, to.shape),
                                       targets, ignore_index, label_smoothing);
              cross_entropy_gradient(in, arguments.like("losses", losses, statistics, in.targets.shape), to,
                                     arguments.like("count", count, DType::f64, {1}), dloss, stream_of(stream));
          });
    m.def("count_targets", [](py::object count, py::object targets, int64_t ignore_index, bool mean, uintptr_t stream) {
        const Arguments arguments("count_targets");
        count_targets(arguments.like("count", count, DType::f64, {1}), arguments.integers("targets", targets),
                      ignore_index, mean, stream_of(stream));
    });
    m.def("embedding", [](py::object out, py::object weight, py::object ids, uintptr_t stream) {
        const Arguments arguments("embedding");
        const Array table = arguments.floats("weight", weight), rows = arguments.integers("ids", ids);
        if (table.ndim() != 2)
            arguments["weight"].fail_value("have two axes", shape_text(table.shape));
        Shape shape = rows.shape;
        shape.push_back(table.shape[1]);
        embedding(arguments.like("out", out, table.dtype, shape), table, rows, stream_of(stream));
    });
    m.def("embedding_backward", [](py::object dweight, py::object dy, py::object ids, bool accumulate,
                                   py::object allocate, uintptr_t stream) {
        const Arguments arguments("embedding_backward");
        const Array from = arguments.floats("dy", dy, 1), rows = arguments.integers("ids", ids);
        require_shape(arguments["dy"], from, [&] {
            Shape shape = rows.shape;
            shape.push_back(from.columns());
            return shape;
        }());
        const Array to = contiguous(arguments["dweight"], dweight);
        arguments.require_wide("dweight", to, from.dtype);
        if (to.ndim() != 2 || to.shape[1] != from.columns())
            arguments["dweight"].fail_value("have rows of " + std::to_string(from.columns()), shape_text(to.shape));
        if (rows.size() > int64_t(0xffffffff) || to.shape[0] >= int64_t(0xffffffff))
            arguments["ids"].fail_value("be fewer than 2**32", std::to_string(rows.size()));
        embedding_backward(to, from, rows, accumulate, allocate_by(allocate), stream_of(stream));
    });
}

// ---- updates

std::vector<Array> list_of(const Arguments &arguments, const char *name, py::handle objects,
                           const std::vector<Array> *like, bool update) {
    std::vector<Array> arrays;
    for (const py::handle object : objects) {
        const std::string argument = std::string(name) + "[" + std::to_string(arrays.size()) + "]";
        const Array array = arguments.floats(argument.c_str(), object);
        if (update && array.dtype != DType::f32 && array.dtype != DType::f64)
            arguments[argument.c_str()].fail_type("have dtype float32 or float64", dtype_text(array.dtype));
        const DType first = like && !like->empty() ? (*like)[0].dtype : arrays.empty() ? array.dtype : arrays[0].dtype;
        if (update)
            require_dtype(arguments[argument.c_str()], array, first);
        if (like && arrays.size() < like->size())
            require_shape(arguments[argument.c_str()], array, (*like)[arrays.size()].shape);
        arrays.push_back(array);
    }
    if (like && arrays.size() != like->size())
        arguments[name].fail_value("have " + std::to_string(like->size()) + " arrays, as values",
                                   std::to_string(arrays.size()));
    return arrays;
}

UpdateInputs update_inputs(const Arguments &arguments, py::handle values, py::handle grads, py::handle copies,
                           double grad_scale, py::handle norm, double max_norm) {
    UpdateInputs in{};
    in.operation = arguments.operation();
    in.values = list_of(arguments, "values", values, nullptr, true);
    in.grads = list_of(arguments, "grads", grads, &in.values, true);
    if (!copies.is_none()) {
        std::optional<DType> kind; // of all copies
        for (const py::handle object : copies) {
            const std::string name = "copies[" + std::to_string(in.copies.size()) + "]";
            if (in.copies.size() >= in.values.size())
                arguments["copies"].fail_value("have as many arrays as values", "more");
            in.copies.push_back(std::nullopt);
            if (object.is_none())
                continue;
            const Array array = arguments.floats(name.c_str(), object);
            if (!is_half(array.dtype) || in.values[0].dtype != DType::f32 || (kind && *kind != array.dtype))
                arguments[name.c_str()].fail_type("have dtype float16 or bfloat16, one for all, beside float32",
                                                  dtype_text(array.dtype));
            require_shape(arguments[name.c_str()], array, in.values[in.copies.size() - 1].shape);
            in.copies.back() = array;
            kind = array.dtype;
        }
        if (in.copies.size() != in.values.size())
            arguments["copies"].fail_value("have as many arrays as values", std::to_string(in.copies.size()));
    }
    in.grad_scale = grad_scale;
    in.norm = arguments.maybe_like("norm", norm, DType::f64, {});
    in.max_norm = max_norm;
    return in;
}

std::vector<Array> kept(const Arguments &arguments, const char *name, py::handle objects, const UpdateInputs &in) {
    return objects.is_none() ? std::vector<Array>() : list_of(arguments, name, objects, &in.values, true);
}

void set(UpdateInputs &in, std::initializer_list<double> constants) {
    std::copy(constants.begin(), constants.end(), in.c);
}

void bind_updates(py::module_ &m) {
    m.def("sgd_update", [](py::object values, py::object grads, py::object momenta, py::object copies, double lr,
                           double momentum, bool nesterov, double weight_decay, double grad_scale, py::object norm,
                           double max_norm, uintptr_t stream) {
        const Arguments arguments("sgd_update");
        UpdateInputs in = update_inputs(arguments, values, grads, copies, grad_scale, norm, max_norm);
        in.first = kept(arguments, "momenta", momenta, in);
        in.nesterov = nesterov;
        set(in, {lr, momentum, weight_decay});
        sgd_update(in, stream_of(stream));
    });
    m.def("adam_update", [](py::object values, py::object grads, py::object first, py::object second, py::object copies,
                            double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step,
                            double grad_scale, bool decoupled, py::object norm, double max_norm, uintptr_t stream) {
        const Arguments arguments("adam_update");
        UpdateInputs in = update_inputs(arguments, values, grads, copies, grad_scale, norm, max_norm);
        if (step < 1)
            arguments["step"].fail_value("be 1 or more", std::to_string(step));
        in.first = list_of(arguments, "m", first, &in.values, true);
        in.second = list_of(arguments, "v", second, &in.values, true);
        const double t = double(step);
        set(in,
            {beta1, 1 - beta1, beta2, 1 - beta2, decoupled ? 1 - lr * weight_decay : 1, lr / (1 - std::pow(beta1, t)),
             1 / std::sqrt(1 - std::pow(beta2, t)), eps, decoupled ? 0 : weight_decay});
        adam_update(in, stream_of(stream));
    });
    m.def("adagrad_update",
          [](py::object values, py::object grads, py::object sums, py::object copies, double lr, double eps,
             double weight_decay, double grad_scale, py::object norm, double max_norm, uintptr_t stream) {
              const Arguments arguments("adagrad_update");
              UpdateInputs in = update_inputs(arguments, values, grads, copies, grad_scale, norm, max_norm);
              in.first = list_of(arguments, "sums", sums, &in.values, true);
              set(in, {lr, eps, weight_decay});
              adagrad_update(in, stream_of(stream));
          });
    m.def("rmsprop_update",
          [](py::object values, py::object grads, py::object squares, py::object means, py::object momenta,
             py::object copies, double lr, double alpha, double eps, double weight_decay, double momentum,
             double grad_scale, py::object norm, double max_norm, uintptr_t stream) {
              const Arguments arguments("rmsprop_update");
              UpdateInputs in = update_inputs(arguments, values, grads, copies, grad_scale, norm, max_norm);
              in.first = list_of(arguments, "squares", squares, &in.values, true);
              in.second = kept(arguments, "means", means, in);
              in.third = kept(arguments, "momenta", momenta, in);
              set(in, {lr, alpha, 1 - alpha, eps, weight_decay, momentum});
              rmsprop_update(in, stream_of(stream));
          });
    m.def("lion_update",
          [](py::object values, py::object grads, py::object momenta, py::object copies, double lr, double beta1,
             double beta2, double weight_decay, double grad_scale, py::object norm, double max_norm, uintptr_t stream) {
              const Arguments arguments("lion_update");
              UpdateInputs in = update_inputs(arguments, values, grads, copies, grad_scale, norm, max_norm);
              in.first = list_of(arguments, "m", momenta, &in.values, true);
              set(in, {lr, 1 - beta1, 1 - beta2, weight_decay});
              lion_update(in, stream_of(stream));
          });
    m.def("adafactor_update",
          [](py::object values, py::object grads, py::object rows, py::object columns, py::object copies, double lr,
             double share, double rate, double eps1, double eps2, double d, double weight_decay, double grad_scale,
             py::object norm, double max_norm, py::object allocate, uintptr_t stream) {
              const Arguments arguments("adafactor_update");
              UpdateInputs in = update_inputs(arguments, values, grads, copies, grad_scale, norm, max_norm);
              for (const Array &value : in.values) { // a vector has no columns
                  const size_t i = in.first.size();
                  const bool is_vector = value.ndim() < 2;
                  Shape of_rows = value.shape, of_columns = value.shape;
                  if (!is_vector) {
                      of_rows.pop_back();
                      of_columns.erase(of_columns.end() - 2);
                  }
                  in.first.push_back(arguments.like("rows", py::sequence(rows)[i], value.dtype, of_rows));
                  in.second.push_back(arguments.like("columns", py::sequence(columns)[i], value.dtype,
                                                     is_vector ? Shape{0} : of_columns));
              }
              set(in, {share, rate, 1 - lr * weight_decay, eps1, eps2, d});
              adafactor_update(in, allocate_by(allocate), stream_of(stream));
          });
    m.def("global_norm", [](py::object out, py::object arrays, py::object allocate, uintptr_t stream) {
        const Arguments arguments("global_norm");
        global_norm(arguments.like("out", out, DType::f64, {}), list_of(arguments, "arrays", arrays, nullptr, false),
                    allocate_by(allocate), stream_of(stream));
    });
}

// ---- matmul

Array matrices(const Arguments &arguments, const char *name, py::handle object, int axes, bool any_unit) {
    const Array array = array_of(arguments[name], object);
    if (!is_float(array.dtype))
        arguments[name].fail_type("have a float dtype", dtype_text(array.dtype));
    if (array.ndim() < 2 || (axes > 0 && array.ndim() != axes))
        arguments[name].fail_value("have " + (axes ? std::to_string(axes) : std::string("at least 2")) + " axes",
                                   shape_text(array.shape));
    if (array.size() == 0)
        return array;
    const size_t last = array.shape.size() - 1;
    const bool rows = array.strides[last] == 1 || array.shape[last] <= 1,
               columns = array.strides[last - 1] == 1 || array.shape[last - 1] <= 1;
    if (!rows && !(any_unit && columns))
        arguments[name].fail_value("have unit stride on its last axis" +
                                       std::string(any_unit ? " or the one before" : ""),
                                   shape_text(array.strides));
    return array;
}

void bind_matmul(py::module_ &m) {
    m.def("matmul", [](py::object out, py::object a, py::object b, py::object bias, py::object activation_name,
                       py::object residual, py::object preactivation, double scale, bool accumulate,
                       py::object allocate, uintptr_t stream) {
        const Arguments arguments("matmul");
        MatmulInputs in{};
        in.a = matrices(arguments, "a", a, 0, true);
        const int axes = in.a.ndim();
        in.b = matrices(arguments, "b", b, axes, true);
        const Array to = matrices(arguments, "out", out, axes, false);
        require_dtype(arguments["b"], in.b, in.a.dtype);
        arguments.require_wide("out", to, in.a.dtype);
        const size_t last = size_t(axes) - 1;
        Shape shape = in.a.shape, of_b = in.a.shape;
        shape[last] = in.b.shape[last];
        of_b[last - 1] = in.a.shape[last];
        of_b[last] = in.b.shape[last];
        require_shape(arguments["b"], in.b, of_b);
        require_shape(arguments["out"], to, shape);
        if (!bias.is_none()) {
            in.bias = arguments.wide("bias", bias, in.a.dtype, {shape[last]});
        }
        MaybeArray before;
        for (const auto &[name, object, array] :
             {std::tuple<const char *, py::object, MaybeArray *>{"residual", residual, &in.residual},
              {"preactivation", preactivation, &before}})
            if (!object.is_none()) {
                *array = matrices(arguments, name, object, axes, false);
                require_dtype(arguments[name], **array, to.dtype);
                require_shape(arguments[name], **array, shape);
            }
        if (!activation_name.is_none())
            in.activation = activation_named(arguments, py::cast<std::string>(activation_name));
        in.scale = scale;
        in.accumulate = accumulate;
        if (to.size() > 0)
            matmul(in, to, before, allocate_by(allocate), stream_of(stream));
    });
}

} // namespace
} // namespace nf::cuda

#ifdef NUMFORMER_CUDA_HOST
namespace nf::cuda {
void bind_probes(py::module_ &m); // tests/cuda/host/probes*.cpp: kernels that test the host's device layer
void bind_hopper_probes(py::module_ &m);
} // namespace nf::cuda
#endif

PYBIND11_MODULE(NUMFORMER_CUDA_MODULE, m, py::mod_gil_not_used()) {
    using namespace nf::cuda;
    m.doc() = "numformer's kernels on a device; numformer_cuda calls them.";
    nf::bindings::translate_errors();
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer)
                std::rethrow_exception(pointer);
        } catch (const NotThere &error) {
            PyErr_SetString(PyExc_NotImplementedError, error.what());
        }
    });
    bind_rows(m);
    bind_elements(m);
    bind_attention(m);
    bind_losses(m);
    bind_updates(m);
    bind_matmul(m);
#ifdef NUMFORMER_CUDA_HOST
    m.attr("runtime_version") = 0;
    bind_probes(m);
    bind_hopper_probes(m);
#else
    m.attr("runtime_version") = CUDART_VERSION;
#endif
}
