#include "bindings/arrays.hpp"

#include "bindings/dlpack.hpp"
#include "core/pool.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

namespace nf::bindings {
namespace {

constexpr int64_t kPoolThreshold = 64 * 1024;

// NumPy's type numbers, fixed by its ABI; bfloat16 is registered by ml_dtypes at run time under a number of its own.
constexpr int kNumBool = 0, kNumFloat = 11, kNumDouble = 12, kNumHalf = 23;
std::atomic<int> bfloat16_number{-1};

std::string describe(py::handle object) {
    return py::cast<std::string>(py::str(py::type::of(object).attr("__name__")));
}

bool find_dtype(const py::dtype &dtype, DType &found) {
    if (dtype.byteorder() == '>') // never native on the processors we have kernels for
        return false;
    const int number = dtype.num();
    switch (number) {
    case kNumFloat:
        found = DType::f32;
        return true;
    case kNumDouble:
        found = DType::f64;
        return true;
    case kNumHalf:
        found = DType::f16;
        return true;
    case kNumBool:
        found = DType::boolean;
        return true;
    default:
        break;
    }
    if (number == bfloat16_number.load(std::memory_order_relaxed)) {
        found = DType::bf16;
        return true;
    }
    if (dtype.kind() == 'i' && (dtype.itemsize() == 4 || dtype.itemsize() == 8)) {
        found = dtype.itemsize() == 4 ? DType::i32 : DType::i64;
        return true;
    }
    if (number > 255 && dtype.itemsize() == 2 && py::cast<std::string>(dtype.attr("name")) == "bfloat16") {
        bfloat16_number.store(number);
        found = DType::bf16;
        return true;
    }
    return false;
}

View view_of(const char *operation, const char *argument, const py::array &array) {
    View view;
    if (!find_dtype(array.dtype(), view.dtype))
        fail_type(operation, std::string(argument) +
                                 " must have dtype float32, float64, float16 or bfloat16 (integers: int32 or int64; " +
                                 "masks: bool), got " + py::cast<std::string>(py::str(array.dtype())));
    view.data = static_cast<char *>(const_cast<void *>(array.data()));
    const int64_t item = view.item_size();
    const int axes = static_cast<int>(array.ndim());
    view.shape.assign(array.shape(), array.shape() + axes);
    view.strides.resize(axes);
    for (int axis = 0; axis < axes; ++axis)
        view.strides[axis] = array.strides(axis) / item;
    return view;
}

// Strides that are whole elements and a base that is aligned to the element: what a typed pointer can walk.
bool is_walkable(const py::array &array) {
    const py::ssize_t item = array.itemsize();
    if (reinterpret_cast<uintptr_t>(array.data()) % static_cast<uintptr_t>(item) != 0)
        return false;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
        if (array.strides(axis) % item != 0)
            return false;
    return true;
}

bool fits(const View &view, Layout layout) {
    const int axes = view.ndim();
    auto unit = [&](int axis) { return view.shape[axis] <= 1 || view.strides[axis] == 1; };
    switch (layout) {
    case Layout::any:
        return true;
    case Layout::last_axis:
        return axes == 0 || unit(axes - 1);
    case Layout::matrix:
        return axes == 0 || unit(axes - 1) || (axes > 1 && unit(axes - 2));
    case Layout::contiguous:
        return view.is_contiguous();
    }
    return false;
}

// (A py::array that is declared before it has a value makes an empty one: half a microsecond.)
py::array array_of(const char *operation, const char *argument, py::handle object) {
    if (py::isinstance<py::array>(object))
        return py::reinterpret_borrow<py::array>(object);
    if (py::hasattr(object, "__dlpack__"))
        return dlpack::read(operation, argument, object);
    if (py::hasattr(object, "__array__"))
        return py::reinterpret_steal<py::array>(
            py::object(py::module_::import("numpy").attr("asarray")(object)).release());
    fail_type(operation, std::string(argument) + " must be a numpy.ndarray (or have __dlpack__ or __array__), got " +
                             describe(object));
}

py::array copy_of(const py::array &array) {
    py::object copy = py::module_::import("numpy").attr("array")(array, py::arg("order") = "C", py::arg("copy") = true,
                                                                 py::arg("subok") = false);
    return py::reinterpret_steal<py::array>(copy.release());
}

} // namespace

Input input(const char *operation, const char *argument, py::handle object, Layout layout) {
    py::array array = array_of(operation, argument, object);
    View view = view_of(operation, argument, array);
    if (!is_walkable(array) || !fits(view, layout)) {
        array = copy_of(array);
        view = view_of(operation, argument, array);
    }
    return {std::move(array), std::move(view)};
}

std::optional<Input> optional_input(const char *operation, const char *argument, py::handle object, Layout layout) {
    if (object.is_none())
        return std::nullopt;
    return input(operation, argument, object, layout);
}

Input output(const char *operation, const char *argument, py::handle object) {
    if (!py::isinstance<py::array>(object))
        fail_type(operation, std::string(argument) + " must be a numpy.ndarray, got " + describe(object));
    py::array array = py::reinterpret_borrow<py::array>(object);
    if (!array.writeable())
        fail_value(operation, std::string(argument) + " must be writeable, got a read-only array");
    if (!is_walkable(array))
        fail_value(operation, std::string(argument) + " must be aligned to its elements");
    View view = view_of(operation, argument, array);
    return {std::move(array), std::move(view)};
}

void require_float(const char *operation, const char *argument, const View &view) {
    if (static_cast<int>(view.dtype) > static_cast<int>(DType::bf16))
        fail_type(operation, std::string(argument) + " must have dtype float32, float64, float16 or bfloat16, got " +
                                 name_of(view.dtype));
}

void require_same_dtype(const char *operation, const char *argument, const View &view, DType expected) {
    if (view.dtype != expected)
        fail_type(operation, std::string(argument) + " must have the dtype of the first array, " + name_of(expected) +
                                 ", got " + name_of(view.dtype));
}

py::dtype dtype_of(DType dtype) {
    switch (dtype) {
    case DType::f32:
        return py::dtype(kNumFloat);
    case DType::f64:
        return py::dtype(kNumDouble);
    case DType::f16:
        return py::dtype(kNumHalf);
    case DType::boolean:
        return py::dtype(kNumBool);
    case DType::i32:
        return py::dtype::of<int32_t>();
    case DType::i64:
        return py::dtype::of<int64_t>();
    case DType::bf16:
        if (const int number = bfloat16_number.load(std::memory_order_relaxed); number >= 0)
            return py::dtype(number);
    }
    return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
}

DType dtype_from(const char *operation, const char *argument, py::handle dtype) {
    DType found;
    std::string given; // text only for an error: a dtype takes microseconds to say its name
    try {
        if (!dtype.is_none()) { // which NumPy takes for float64
            const py::dtype descriptor = py::dtype::from_args(py::reinterpret_borrow<py::object>(dtype));
            if (find_dtype(descriptor, found) && static_cast<int>(found) <= static_cast<int>(DType::bf16))
                return found;
            given = py::cast<std::string>(py::str(descriptor));
        }
    } catch (const py::error_already_set &) { // what NumPy does not know
    }
    if (given.empty())
        given = py::cast<std::string>(py::str(dtype));
    fail_type(operation, std::string(argument) + " must be float32, float64, float16 or bfloat16, got " + given);
}

static py::array in_pool(const Shape &shape, DType dtype, int64_t bytes) {
    void *memory = pool::allocate(static_cast<size_t>(bytes));
    if (!memory)
        throw std::bad_alloc();
    py::capsule owner(memory, [](void *pointer) { pool::release(pointer); });
    return py::array(dtype_of(dtype), shape, memory, owner);
}

Input allocate(const Shape &shape, DType dtype) {
    View view;
    view.dtype = dtype;
    view.shape = shape;
    view.strides.resize(shape.size());
    int64_t count = 1;
    for (int axis = view.ndim() - 1; axis >= 0; --axis) {
        view.strides[axis] = count;
        count *= std::max<int64_t>(shape[axis], 1);
    }
    const int64_t bytes = view.size() * view.item_size();
    py::array array = bytes >= kPoolThreshold ? in_pool(shape, dtype, bytes) : py::array(dtype_of(dtype), shape);
    view.data = static_cast<char *>(array.mutable_data());
    return {std::move(array), std::move(view)};
}

bool may_overlap(const View &a, const View &b) {
    auto extent = [](const View &view, const char *&low, const char *&high) {
        low = high = view.data;
        for (int axis = 0; axis < view.ndim(); ++axis) {
            if (view.shape[axis] == 0)
                return false;
            const int64_t reach = (view.shape[axis] - 1) * view.strides[axis] * view.item_size();
            (reach < 0 ? low : high) += reach;
        }
        high += view.item_size();
        return true;
    };
    const char *a_low, *a_high, *b_low, *b_high;
    return extent(a, a_low, a_high) && extent(b, b_low, b_high) && a_low < b_high && b_low < a_high;
}

} // namespace nf::bindings
