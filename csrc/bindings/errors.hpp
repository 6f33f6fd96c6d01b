// What errors of the C++ side are in Python, in each native module.
#pragma once
#include "core/error.hpp"

#include <pybind11/pybind11.h>

namespace nf::bindings {

inline void translate_errors() {
    pybind11::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer)
                std::rethrow_exception(pointer);
        } catch (const TypeError &error) {
            PyErr_SetString(PyExc_TypeError, error.what());
        } catch (const ValueError &error) {
            PyErr_SetString(PyExc_ValueError, error.what());
        }
    });
}

} // namespace nf::bindings
