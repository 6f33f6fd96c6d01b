// Python scalars and lists as arguments: TypeError with operation, argument and what was received.
#pragma once
#include "bindings/arrays.hpp"

#include <string>
#include <vector>

namespace nf::bindings {

inline std::string type_name(py::handle object) {
    return py::cast<std::string>(py::str(py::type::of(object).attr("__name__")));
}

inline double number(const char *operation, const char *argument, py::handle object) {
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        fail_type(operation, std::string(argument) + " must be a number, got " + type_name(object));
    }
    return value;
}

inline int64_t integer(const char *operation, const char *argument, py::handle object) {
    if (!PyIndex_Check(object.ptr()))
        fail_type(operation, std::string(argument) + " must be an integer, got " + type_name(object));
    const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
    int overflow = 0;
    const long long value = index ? PyLong_AsLongLongAndOverflow(index.ptr(), &overflow) : -1;
    if (PyErr_Occurred()) {
        PyErr_Clear();
        fail_type(operation, std::string(argument) + " must be an integer, got " + type_name(object));
    }
    if (overflow)
        fail_value(operation,
                   std::string(argument) + " must fit in 64 bits, got " + py::cast<std::string>(py::str(index)));
    return value;
}

inline bool boolean(const char *operation, const char *argument, py::handle object) {
    const int value = PyObject_IsTrue(object.ptr());
    if (value < 0) {
        PyErr_Clear();
        fail_type(operation, std::string(argument) + " must be True or False, got " + type_name(object));
    }
    return value != 0;
}

inline std::string text(const char *operation, const char *argument, py::handle object) {
    if (!py::isinstance<py::str>(object))
        fail_type(operation, std::string(argument) + " must be a string, got " + type_name(object));
    return py::cast<std::string>(object);
}

inline const View *pointer_to(const std::optional<Input> &array) { return array ? &array->view : nullptr; }
inline py::object array_or_none(const std::optional<Input> &array) {
    return array ? py::object(array->array) : py::object(py::none());
}

// A float array in C order of the dtype `expected`, or of any float dtype.
inline Input float_input(const char *operation, const char *argument, py::handle object,
                         std::optional<DType> expected = std::nullopt) {
    Input result = input(operation, argument, object, Layout::contiguous);
    require_float(operation, argument, result.view);
    if (expected)
        require_same_dtype(operation, argument, result.view, *expected);
    return result;
}
inline std::optional<Input> optional_float_input(const char *operation, const char *argument, py::handle object,
                                                 DType expected) {
    if (object.is_none())
        return std::nullopt;
    return float_input(operation, argument, object, expected);
}

// The same, but float32 may accompany the 16-bit types.
inline Input wide_input(const char *operation, const char *argument, py::handle object, DType expected) {
    Input result = float_input(operation, argument, object);
    if (result.view.dtype != DType::f32 || expected == DType::f64)
        require_same_dtype(operation, argument, result.view, expected);
    return result;
}
inline std::optional<Input> optional_wide_input(const char *operation, const char *argument, py::handle object,
                                                DType expected) {
    if (object.is_none())
        return std::nullopt;
    return wide_input(operation, argument, object, expected);
}

// Where a sum goes: the dtype of what is summed, or float32 for a 16-bit one.
inline std::optional<Input> sum_output(const char *name, const char *argument, py::handle object, DType dtype,
                                       bool accumulate) {
    if (object.is_none()) {
        if (accumulate)
            fail_value(name, std::string("accumulate=True needs ") + argument);
        return std::nullopt;
    }
    Input out = output(name, argument, object);
    if (out.view.dtype != DType::f32 || dtype == DType::f64)
        require_same_dtype(name, argument, out.view, dtype);
    return out;
}

// Where a result goes: a new array, or the caller's `out`. An `out` that is not contiguous, or that overlaps an input
// other than in place, is computed beside and copied by finish().
class Result {
  public:
    Result(Input fresh) : target_(std::move(fresh)) {}
    // keep: out is added to. `in_place`: an input that may be the very same array.
    Result(Input given, bool keep, std::initializer_list<const View *> inputs, const View *in_place = nullptr)
        : target_(given), given_(given.array) {
        bool direct = given.view.is_contiguous();
        for (const View *view : inputs)
            direct = direct && !may_overlap(given.view, *view);
        if (in_place && in_place->data != given.view.data)
            direct = direct && !may_overlap(given.view, *in_place);
        if (direct)
            return;
        target_ = allocate(given.view.shape, given.view.dtype);
        copied_ = true;
        if (keep)
            target_.array[py::ellipsis()] = *given_;
    }
    const View &view() const { return target_.view; }
    py::object finish() {
        if (!copied_)
            return target_.array;
        (*given_)[py::ellipsis()] = target_.array;
        return *given_;
    }

  private:
    Input target_;
    std::optional<py::array> given_;
    bool copied_ = false;
};

} // namespace nf::bindings
