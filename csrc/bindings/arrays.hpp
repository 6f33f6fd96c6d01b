// Between NumPy arrays and views: what every bind_*.cpp needs.
#pragma once
#include "core/error.hpp"
#include "core/view.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <optional>
#include <string>
#include <utility>

namespace nf::bindings {

namespace py = pybind11;

// What an operation can read without a copy.
enum class Layout {
    any,        // any strides
    last_axis,  // unit stride on the last axis; anything else is copied
    matrix,     // unit stride on one of the last two axes; anything else is copied
    contiguous, // C order; anything else is copied
};

// A view and the array that keeps its memory alive.
struct Input {
    py::array array;
    View view;
};

// Takes a numpy.ndarray, or anything with __dlpack__ or __array__; TypeError (operation, argument) for anything else
// and for dtypes that numformer does not know.
Input input(const char *operation, const char *argument, py::handle object, Layout layout = Layout::last_axis);
// None gives nothing.
std::optional<Input> optional_input(const char *operation, const char *argument, py::handle object,
                                    Layout layout = Layout::last_axis);
// An array that is written: a writeable ndarray, never copied. ValueError for read-only ones.
Input output(const char *operation, const char *argument, py::handle object);

// Float dtypes only (float32, float64, float16, bfloat16).
void require_float(const char *operation, const char *argument, const View &view);
// The same dtype as the first array of the call.
void require_same_dtype(const char *operation, const char *argument, const View &view, DType expected);

// A new array in C order. 64 KiB and more come from the pool, smaller ones are NumPy's own.
Input allocate(const Shape &shape, DType dtype);
py::dtype dtype_of(DType dtype);
// Throws TypeError for unknown ones.
DType dtype_from(const char *operation, const char *argument, py::handle dtype);

// Do the two views touch a common range of memory? (By extent: may say yes for interleaved ones.)
bool may_overlap(const View &a, const View &b);

// Adds a function with its signature in words, "name(x: type, /) -> type": its docstring, from which tools/make_stubs
// writes the types of the module.
template <class F, class... Extra>
void define(py::module_ &m, const char *signature, F &&function, const Extra &...extra) {
    const char *end = std::strchr(signature, '(');
    m.def(std::string(signature, end).c_str(), std::forward<F>(function), signature, extra...);
}

void bind_runtime(py::module_ &m);
void bind_matmul(py::module_ &m);
void bind_attention(py::module_ &m);
void bind_rowwise(py::module_ &m);
void bind_linear_cross_entropy(py::module_ &m);
void bind_elementwise(py::module_ &m);
void bind_optimizer(py::module_ &m);

} // namespace nf::bindings
