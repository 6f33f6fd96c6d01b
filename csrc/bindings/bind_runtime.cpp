#include "bindings/arrays.hpp"
#include "core/pool.hpp"
#include "runtime/kernels.hpp"
#include "runtime/parallel.hpp"
#include "runtime/processor.hpp"
#include "runtime/profiler.hpp"

#include <pybind11/stl.h>

#include <atomic>
#include <memory>

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

// GFLOP/s of multiply-adds in registers on all threads together: `rounds` on each.
double ceiling_gflops(bool wide, int64_t rounds) {
    struct Work {
        bool wide;
        int64_t rounds;
        double flops[1024];
    };
    py::gil_scoped_release release;
    const int threads = runtime::threads_here();
    auto work = std::make_unique<Work>();
    work->wide = wide;
    work->rounds = rounds;
    const int64_t start = profiler::now();
    runtime::parallel_ranges(threads, 1, work.get(), [](void *context, int64_t begin, int64_t end) {
        Work &w = *static_cast<Work *>(context);
        const Kernels &table = runtime::kernels();
        for (int64_t i = begin; i < end; ++i)
            w.flops[i] = (w.wide ? table.multiply_adds_f64 : table.multiply_adds_f32)(w.rounds);
    });
    double total = 0;
    for (int i = 0; i < threads; ++i)
        total += work->flops[i];
    return total / static_cast<double>(profiler::now() - start);
}

// GB/s of reading `x`, each thread its share.
double ceiling_bandwidth(const py::array_t<float, py::array::c_style> &x) {
    struct Work {
        const float *data;
        float sum[1024];
        std::atomic<int> next;
    };
    const int64_t count = x.size();
    auto work = std::make_unique<Work>();
    work->data = x.data();
    work->next = 0;
    py::gil_scoped_release release;
    const int64_t start = profiler::now();
    runtime::parallel_ranges(count, count / runtime::threads_here(), work.get(),
                             [](void *context, int64_t begin, int64_t end) {
                                 Work &w = *static_cast<Work *>(context);
                                 w.sum[w.next++ % 1024] = runtime::kernels().read_streams(w.data + begin, end - begin);
                             });
    return static_cast<double>(count) * 4 / static_cast<double>(profiler::now() - start);
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
    m.def("ceiling_gflops", &ceiling_gflops, py::arg("wide"), py::arg("rounds"));
    m.def("ceiling_bandwidth", &ceiling_bandwidth, py::arg("x"));
    m.def("profile_start", &profiler::start);
    m.def("profile_stop", &profiler::stop);
    m.def("profile_records", &profile_records);
}

} // namespace nf::bindings
