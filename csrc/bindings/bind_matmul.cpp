#include "bindings/arrays.hpp"
#include "ops/matmul.hpp"
#include "ops/packed_matrix.hpp"

namespace nf::bindings {
namespace {

constexpr const char *kName = "matmul";

constexpr const char *kNameStored[] = {"", "float32", "float64", "float16", "bfloat16", "int8"}; // by Stored

// Rows that can be walked with one stride: all axes but the batch's were folded into one, so `out` and its like must be
// contiguous there.
bool is_usable(const View &view) { return view.is_contiguous() || view.ndim() == 2; }

// Element for element in the same place: each is read before it is written. The residual is contiguous.
bool is_the_same(const Input &residual, const Input &out) {
    return residual.view.data == out.view.data && out.view.is_contiguous();
}

void require_out_shape(const char *argument, const View &view, const Shape &expected) {
    if (view.shape != expected)
        fail_value(kName, std::string(argument) + " must have shape " + to_string(expected) + ", got " +
                              to_string(view.shape));
}

py::object matmul(py::handle a_object, py::handle b_object, py::handle bias_object, py::handle activation,
                  py::handle residual_object, double scale, bool accumulate, py::handle dtype, bool save_preactivation,
                  py::handle out_object) {
    const Input a = input(kName, "a", a_object, Layout::matrix);
    require_float(kName, "a", a.view);
    std::optional<Input> b; // not if it is a PackedMatrix
    ops::Matmul product = [&] {
        if (!py::isinstance<py::array>(b_object) && py::isinstance<ops::PackedMatrix>(b_object)) {
            const ops::PackedMatrix &packed = py::cast<const ops::PackedMatrix &>(b_object);
            if ((packed.stored() == Stored::f64) != (a.view.dtype == DType::f64))
                fail_type(kName, std::string("float64 is not mixed with other types: a is ") + name_of(a.view.dtype) +
                                     ", b is stored as " + kNameStored[static_cast<int>(packed.stored())]);
            return ops::Matmul(a.view, packed);
        }
        b = input(kName, "b", b_object, Layout::matrix);
        require_same_dtype(kName, "b", b->view, a.view.dtype);
        return ops::Matmul(a.view, b->view);
    }();
    product.set_scale(scale);
    if (!activation.is_none()) {
        if (!py::isinstance<py::str>(activation))
            fail_type(kName, "activation must be None or a string");
        product.set_activation(ops::activation_from(kName, py::cast<std::string>(activation)));
    }
    const std::optional<Input> bias = optional_input(kName, "bias", bias_object);
    if (bias) {
        if (bias->view.dtype != DType::f32 || a.view.dtype == DType::f64) // float32 may accompany the 16-bit types
            require_same_dtype(kName, "bias", bias->view, a.view.dtype);
        product.set_bias(bias->view);
    }

    // The type of the output: dtype, else that of out, else that of a.
    std::optional<Input> given;
    DType out_type = a.view.dtype;
    if (!out_object.is_none()) {
        given = output(kName, "out", out_object);
        require_float(kName, "out", given->view);
        out_type = given->view.dtype;
        require_out_shape("out", given->view, product.out_shape());
    } else if (accumulate) {
        fail_value(kName, "accumulate=True needs out");
    }
    if (!dtype.is_none()) {
        const DType wanted = dtype_from(kName, "dtype", dtype);
        if (given && wanted != out_type)
            fail_type(kName, std::string("out must have dtype ") + name_of(wanted) + ", got " + name_of(out_type));
        out_type = wanted;
    }
    if ((out_type == DType::f64) != (a.view.dtype == DType::f64))
        fail_type(kName, std::string("float64 is not mixed with other types: a is ") + name_of(a.view.dtype) +
                             ", the output is to be " + name_of(out_type));

    const std::optional<Input> residual = optional_input(kName, "residual", residual_object, Layout::contiguous);
    if (residual) {
        require_same_dtype(kName, "residual", residual->view, out_type);
        require_out_shape("residual", residual->view, product.out_shape());
        product.set_residual(residual->view);
    }
    std::optional<Input> preactivation;
    if (save_preactivation) {
        preactivation = allocate(product.out_shape(), out_type);
        product.set_preactivation(preactivation->view);
    }

    // An output that overlaps an input or whose rows cannot be walked is computed beside and copied.
    const bool in_place =
        given && is_usable(given->view) &&
        (given->view.ndim() == 0 || given->view.strides.back() == 1 || given->view.shape.back() <= 1) &&
        !may_overlap(given->view, a.view) && !(b && may_overlap(given->view, b->view)) &&
        !(bias && may_overlap(given->view, bias->view)) &&
        !(residual && !is_the_same(*residual, *given) && may_overlap(given->view, residual->view));
    Input result = in_place ? *given : allocate(product.out_shape(), out_type);
    if (given && !in_place && accumulate)
        result.array[py::ellipsis()] = given->array;
    product.set_accumulate(accumulate);
    {
        py::gil_scoped_release release;
        product.run(result.view);
    }
    if (given && !in_place)
        given->array[py::ellipsis()] = result.array;
    // A product of two vectors is a scalar, as NumPy's is.
    auto in_python = [&](const py::array &array) {
        return array.ndim() == 0 ? py::object(array[py::tuple()]) : py::object(array);
    };
    const py::object y = given ? py::object(given->array) : in_python(result.array);
    if (preactivation)
        return py::make_tuple(y, in_python(preactivation->array));
    return y;
}

// dtype: None (that of b), a float dtype, or int8.
Stored stored_from(const View &b, py::handle dtype) {
    constexpr const char *kPacked = "PackedMatrix";
    DType wanted = b.dtype;
    if (!dtype.is_none()) {
        const py::dtype given = py::dtype::from_args(py::reinterpret_borrow<py::object>(dtype));
        if (given.kind() == 'i' && given.itemsize() == 1) {
            if (b.dtype == DType::f64)
                fail_type(kPacked, "dtype must be float64 for a float64 b, got int8");
            return Stored::i8;
        }
        wanted = dtype_from(kPacked, "dtype", dtype);
    }
    if ((wanted == DType::f64) != (b.dtype == DType::f64))
        fail_type(kPacked, std::string("dtype must be float64 for a float64 b and for no other, got ") +
                               name_of(wanted) + " for " + name_of(b.dtype));
    switch (wanted) {
    case DType::f32:
        return Stored::f32;
    case DType::f64:
        return Stored::f64;
    case DType::f16:
        return Stored::f16;
    case DType::bf16:
        return Stored::bf16_pairs;
    default:
        fail_type(kPacked,
                  std::string("dtype must be float32, float64, float16, bfloat16 or int8, got ") + name_of(wanted));
    }
}

std::unique_ptr<ops::PackedMatrix> pack(py::handle b_object, py::handle dtype) {
    const Input b = input("PackedMatrix", "b", b_object, Layout::matrix);
    require_float("PackedMatrix", "b", b.view);
    const Stored stored = stored_from(b.view, dtype);
    py::gil_scoped_release release;
    return std::make_unique<ops::PackedMatrix>(b.view, stored);
}

py::array unpack(const ops::PackedMatrix &matrix) {
    const Input out =
        allocate({matrix.rows(), matrix.columns()}, matrix.stored() == Stored::f64 ? DType::f64 : DType::f32);
    {
        py::gil_scoped_release release;
        matrix.unpack(out.view);
    }
    return out.array; // counts a reference, for which the lock is needed
}

template <class F> py::cpp_function getter(const char *signature, F &&f) {
    return py::cpp_function(std::forward<F>(f), signature);
}

} // namespace

void bind_matmul(py::module_ &m) {
    py::class_<ops::PackedMatrix>(m, "PackedMatrix")
        .def(py::init(&pack), "__init__(self, b: numpy.ndarray, dtype: object) -> None", py::arg("b"), py::arg("dtype"))
        .def_property_readonly("shape",
                               getter("(self) -> tuple[int, int]",
                                      [](const ops::PackedMatrix &p) { return py::make_tuple(p.rows(), p.columns()); }))
        .def_property_readonly(
            "stored", getter("(self) -> str",
                             [](const ops::PackedMatrix &p) { return kNameStored[static_cast<int>(p.stored())]; }))
        .def_property_readonly("nbytes", getter("(self) -> int", [](const ops::PackedMatrix &p) { return p.bytes(); }))
        .def("unpack", &unpack, "unpack(self) -> numpy.ndarray");
    define(m,
           "matmul(a: numpy.ndarray, b: numpy.ndarray | PackedMatrix, bias: numpy.ndarray | None, activation: str | "
           "None, residual: "
           "numpy.ndarray | None, scale: float, accumulate: bool, dtype: object, save_preactivation: bool, out: "
           "numpy.ndarray | None) -> typing.Any",
           &matmul, py::arg("a"), py::arg("b"), py::arg("bias"), py::arg("activation"), py::arg("residual"),
           py::arg("scale"), py::arg("accumulate"), py::arg("dtype"), py::arg("save_preactivation"), py::arg("out"));
}

} // namespace nf::bindings
