#include "bindings/arrays.hpp"
#include "core/pool.hpp"
#include "runtime/kernels.hpp"
#include "runtime/parallel.hpp"
#include "runtime/processor.hpp"
#include "runtime/profiler.hpp"

#include <pybind11/stl.h>

namespace nf::bindings {
namespace {

py::dict pool_statistics() {
    const pool::Statistics s = pool::statistics();
    py::dict d;
    d["bytes_in_use"] = s.bytes_in_use;
    d["bytes_cached"] = s.bytes_cached;
    d["peak_bytes"] = s.peak_bytes;
    d["limit"] = s.limit;
    return d;
}

py::tuple profile_records() {
    int64_t dropped = 0;
    py::list rows;
    for (const profiler::Record &r : profiler::take(&dropped)) {
        py::tuple shape(profiler::kMaxShape);
        for (int i = 0; i < profiler::kMaxShape; ++i)
            shape[i] = r.shape[i];
        rows.append(py::make_tuple(r.name, shape, r.flops, r.bytes, r.start_ns, r.end_ns, r.thread));
    }
    return py::make_tuple(rows, dropped);
}

} // namespace

void bind_runtime(py::module_ &m) {
    m.attr("__version__") = NUMFORMER_VERSION;
    m.attr("isa") = runtime::kernels().level; // chosen here, once, at import
    m.def("isa_available", &runtime::available_levels);
    m.def("get_num_threads", &runtime::num_threads);
    m.def("set_num_threads", [](py::int_ n) {
        const long threads = py::cast<long>(n);
        if (threads < 1 || threads > 1024)
            fail_value("set_num_threads", "n must be between 1 and 1024, got " + std::to_string(threads));
        runtime::set_num_threads(static_cast<int>(threads));
    });
    m.def("available_processors", &runtime::available_processors);
    m.def("pool_statistics", &pool_statistics);
    m.def("pool_reset_peak", &pool::reset_peak);
    m.def("set_pool_limit", [](int64_t bytes) {
        if (bytes < 0)
            fail_value("set_pool_limit", "bytes must not be negative, got " + std::to_string(bytes));
        pool::set_limit(bytes);
    });
    m.def("empty_pool", &pool::empty);
    m.def("profile_start", &profiler::start);
    m.def("profile_stop", &profiler::stop);
    m.def("profile_records", &profile_records);
}

} // namespace nf::bindings
