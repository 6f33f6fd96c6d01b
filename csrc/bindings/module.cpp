// The table of contents of numformer._core.
#include "bindings/arrays.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/errors.hpp"

namespace py = pybind11;

// Needs no GIL: see "Threads" in docs/design.md for what that rests on.
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    using namespace nf::bindings;
    m.doc() = "numformer's native kernels; call them through numformer's functions.";
    py::options options;
    options.disable_function_signatures(); // define() has them
    translate_errors();
    bind_runtime(m);
    bind_dlpack(m);
    bind_matmul(m);
    bind_attention(m);
    bind_rowwise(m);
    bind_linear_cross_entropy(m);
    bind_elementwise(m);
    bind_optimizer(m);
}
