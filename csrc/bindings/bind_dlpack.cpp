// Giving arrays to other libraries, and taking theirs by name.
#include "bindings/dlpack.hpp"
#include "bindings/scalars.hpp"

#include <memory>
#include <vector>

namespace nf::bindings {
namespace {

using namespace dlpack;

// A capsule's content and what it points to; lives until the one who took it lets go.
template <class Kind> struct Given {
    Kind managed{};
    py::array array;
    std::vector<int64_t> shape, strides;

    // May come from any thread, with or without the GIL, also after the interpreter has ended.
    static void release(Kind *managed) {
        if (!Py_IsInitialized())
            return;
        const PyGILState_STATE state = PyGILState_Ensure();
        delete static_cast<Given *>(managed->context);
        PyGILState_Release(state);
    }
    // Nobody took it.
    static void drop(PyObject *capsule) {
        if (PyCapsule_IsValid(capsule, Names<Kind>::fresh))
            release(static_cast<Kind *>(PyCapsule_GetPointer(capsule, Names<Kind>::fresh)));
    }
};

ElementType element_type(const py::array &array) {
    const py::dtype dtype = array.dtype();
    const auto bits = static_cast<uint8_t>(dtype.itemsize() * 8);
    const bool native = dtype.byteorder() != '>';
    if (native && py::cast<std::string>(dtype.attr("name")) == "bfloat16")
        return {kBfloat, bits, 1};
    if (native && dtype.num() < 24 && dtype.itemsize() <= 16) { // NumPy's own
        switch (dtype.kind()) {
        case 'b':
            return {kBool, bits, 1};
        case 'i':
            return {kInt, bits, 1};
        case 'u':
            return {kUnsigned, bits, 1};
        case 'f':
            if (bits <= 64)
                return {kFloat, bits, 1};
            break;
        case 'c':
            return {kComplex, bits, 1};
        default:
            break;
        }
    }
    fail_type("to_dlpack", "a must have a dtype that DLPack knows (bool, integers, floats, bfloat16, complex), got " +
                               py::cast<std::string>(py::str(dtype)));
}

template <class Kind> py::object give(const py::array &array) {
    auto given = std::make_unique<Given<Kind>>();
    given->array = array;
    Tensor &tensor = given->managed.tensor;
    tensor.dtype = element_type(array);
    const py::ssize_t item = array.itemsize();
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        if (array.strides(axis) % item != 0)
            fail_value("to_dlpack", "a must have strides of whole elements, got " +
                                        py::cast<std::string>(py::str(array.attr("strides"))));
        given->shape.push_back(array.shape(axis));
        given->strides.push_back(array.strides(axis) / item);
    }
    tensor.data = const_cast<void *>(array.data());
    tensor.device = {kCpu, 0};
    tensor.ndim = static_cast<int32_t>(array.ndim());
    tensor.shape = given->shape.data();
    tensor.strides = given->strides.data();
    given->managed.context = given.get();
    given->managed.deleter = &Given<Kind>::release;
    py::object capsule =
        py::reinterpret_steal<py::object>(PyCapsule_New(&given->managed, Names<Kind>::fresh, &Given<Kind>::drop));
    if (!capsule)
        throw py::error_already_set();
    given.release(); // the capsule's from here on
    return capsule;
}

py::object dlpack_capsule(const py::array &array, bool versioned, bool copied) {
    if (!versioned)
        return give<Managed>(array);
    py::object capsule = give<ManagedVersioned>(array);
    auto *managed =
        static_cast<ManagedVersioned *>(PyCapsule_GetPointer(capsule.ptr(), Names<ManagedVersioned>::fresh));
    managed->version = {1, 0};
    managed->flags = (array.writeable() ? 0 : kReadOnly) | (copied ? kIsCopied : 0);
    return capsule;
}

py::array from_dlpack(py::handle object) {
    if (PyCapsule_CheckExact(object.ptr()))
        return read_capsule("from_dlpack", "x", object);
    if (!py::hasattr(object, "__dlpack__"))
        fail_type("from_dlpack", "x must have __dlpack__ or be a capsule, got " + type_name(object));
    return read("from_dlpack", "x", object);
}

// For functions that are written in Python.
py::array as_array(const char *operation, const char *argument, py::handle object) {
    return input(operation, argument, object, Layout::any).array;
}

} // namespace

void bind_dlpack(py::module_ &m) {
    define(m, "dlpack_capsule(array: numpy.ndarray, versioned: bool, copied: bool) -> typing.Any", &dlpack_capsule,
           py::arg("array"), py::arg("versioned"), py::arg("copied"));
    define(m, "as_array(operation: str, argument: str, x: typing.Any) -> numpy.ndarray", &as_array,
           py::arg("operation"), py::arg("argument"), py::arg("x"));
    define(m, "from_dlpack(x: typing.Any) -> numpy.ndarray", &from_dlpack, py::arg("x"));
}

} // namespace nf::bindings
