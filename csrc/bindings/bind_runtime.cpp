#include "bindings/scalars.hpp"
#include "core/host.hpp"
#include "core/pool.hpp"
#include "core/pool_failure.hpp"
#include "runtime/kernels.hpp"
#include "runtime/parallel.hpp"
#include "runtime/processor.hpp"
#include "runtime/profiler.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace nf::bindings {
namespace {

py::object empty(py::handle shape_object, py::handle dtype) {
    if (!py::isinstance<py::tuple>(shape_object))
        fail_type("empty", "shape must be a tuple of integers, got " + type_name(shape_object));
    Shape shape;
    for (const py::handle size : py::reinterpret_borrow<py::tuple>(shape_object)) {
        shape.push_back(integer("empty", "shape", size));
        if (shape.back() < 0)
            fail_value("empty", "shape must not be negative, got " + std::to_string(shape.back()));
    }
    return allocate(shape, dtype_from("empty", "dtype", dtype)).array;
}

py::dict pool_statistics() {
    const pool::Statistics s = pool::statistics();
    py::dict d;
    d["bytes_in_use"] = s.bytes_in_use;
    d["bytes_cached"] = s.bytes_cached;
    d["peak_bytes"] = s.peak_bytes;
    d["limit"] = s.limit;
    return d;
}

template <class T> py::array_t<T> array_of(const std::vector<T> &items) {
    return py::array_t<T>(static_cast<py::ssize_t>(items.size()), items.data());
}

py::dict profile_snapshot() {
    const profiler::Snapshot all = profiler::take();
    py::dict d;
    d["records"] = array_of(all.records);
    d["ranges"] = array_of(all.ranges);
    d["samples"] = array_of(all.samples);
    d["sums"] = array_of(all.sums);
    d["names"] = py::cast(all.names);
    py::list paths;
    for (const profiler::Path &path : all.paths)
        paths.append(py::make_tuple(path.parent, path.label, path.calls, path.total_ns));
    d["paths"] = paths;
    d["dropped_records"] = all.dropped_records;
    d["dropped_ranges"] = all.dropped_ranges;
    d["dropped_samples"] = all.dropped_samples;
    d["start_ns"] = all.start_ns;
    d["stop_ns"] = all.stop_ns;
    d["thread"] = all.thread;
    return d;
}

// The calls of this thread since explain(): what the kernels say of themselves.
py::list explained() {
    py::list calls;
    for (const profiler::Explanation &call : profiler::explained()) {
        py::dict facts;
        for (int i = 0; i < call.plan.count; ++i) {
            const Plan::Fact &fact = call.plan.facts[i];
            facts[fact.name] =
                fact.yes_or_no ? py::object(py::bool_(fact.value != 0)) : py::object(py::int_(fact.value));
        }
        py::dict d;
        d["operation"] = call.name;
        d["dtype"] = name_of(call.dtype);
        d["shape"] = py::tuple(py::cast(std::vector<int64_t>(call.shape, call.shape + profiler::kMaxShape)));
        d["path"] = call.plan.path ? py::object(py::str(call.plan.path)) : py::object(py::none());
        d["threads"] = call.plan.threads;
        d["scratch_bytes"] = call.plan.scratch;
        d["pairs"] = call.plan.visited;
        d["flops"] = call.work.flops;
        d["bytes"] = call.work.bytes;
        d["facts"] = facts;
        calls.append(d);
    }
    return calls;
}

// GFLOP/s of multiply-adds in registers on all threads together: `rounds` on each.
double ceiling_gflops(const std::string &dtype, int64_t rounds) {
    struct Work {
        double (*multiply_adds)(int64_t rounds);
        int64_t rounds;
        double flops[1024];
    };
    int index = 0;
    while (index < kFloatTypes && dtype != kDTypeName[index])
        ++index;
    if (index == kFloatTypes)
        throw py::value_error("ceiling_gflops: dtype must be the name of a floating type, got '" + dtype + "'");
    py::gil_scoped_release release;
    const int threads = runtime::threads_here();
    auto work = std::make_unique<Work>();
    work->multiply_adds = runtime::kernels().multiply_adds[index];
    work->rounds = rounds;
    const int64_t start = profiler::now();
    runtime::parallel_ranges(threads, 1, work.get(), [](void *context, int64_t begin, int64_t end) {
        Work &w = *static_cast<Work *>(context);
        for (int64_t i = begin; i < end; ++i)
            w.flops[i] = w.multiply_adds(w.rounds);
    });
    double total = 0;
    for (int i = 0; i < threads; ++i)
        total += work->flops[i];
    return total / static_cast<double>(profiler::now() - start);
}

// GB/s of reading `bytes` a thread, `rounds` times: memory that each thread allocated and wrote itself.
double ceiling_bandwidth(int64_t bytes, int64_t rounds) {
    struct Work {
        int64_t count, rounds;
        std::vector<void *> blocks;
        std::vector<float> sums;
    };
    py::gil_scoped_release release;
    const int threads = runtime::threads_here();
    Work work{bytes / 4, rounds, {}, {}};
    work.blocks.resize(static_cast<size_t>(threads));
    work.sums.resize(static_cast<size_t>(threads));
    runtime::parallel_ranges(threads, 1, &work, [](void *context, int64_t begin, int64_t end) {
        Work &w = *static_cast<Work *>(context);
        for (int64_t i = begin; i < end; ++i)
            if (void *block = pool::allocate(static_cast<size_t>(w.count) * 4)) {
                std::memset(block, 0, static_cast<size_t>(w.count) * 4);
                w.blocks[static_cast<size_t>(i)] = block;
            }
    });
    const bool complete = std::find(work.blocks.begin(), work.blocks.end(), nullptr) == work.blocks.end();
    const int64_t start = profiler::now();
    if (complete)
        runtime::parallel_ranges(threads, 1, &work, [](void *context, int64_t begin, int64_t end) {
            Work &w = *static_cast<Work *>(context);
            for (int64_t i = begin; i < end; ++i)
                for (int64_t round = 0; round < w.rounds; ++round)
                    w.sums[static_cast<size_t>(i)] += runtime::kernels().read_streams(
                        static_cast<const float *>(w.blocks[static_cast<size_t>(i)]), w.count);
        });
    const int64_t taken = profiler::now() - start;
    for (void *block : work.blocks)
        pool::release(block);
    if (!complete)
        throw std::bad_alloc();
    return static_cast<double>(work.count) * 4 * static_cast<double>(rounds * threads) / static_cast<double>(taken);
}

// Nanoseconds of a parallel region in which nothing is done.
double fork_join_ns(int64_t rounds) {
    py::gil_scoped_release release;
    const int threads = runtime::threads_here();
    const int64_t start = profiler::now();
    for (int64_t round = 0; round < rounds; ++round)
        runtime::parallel_ranges(threads, 1, nullptr, [](void *, int64_t, int64_t) {});
    return static_cast<double>(profiler::now() - start) / static_cast<double>(rounds);
}

// Bytes of the caches as the system tells, 0 where it does not.
py::dict cache_sizes() {
    py::dict d;
    d["L1"] = host::cache_bytes(1);
    d["L2"] = host::cache_bytes(2);
    d["L3"] = host::cache_bytes(3);
    return d;
}

} // namespace

void bind_runtime(py::module_ &m) {
    m.attr("__version__") = NUMFORMER_VERSION;
    m.attr("isa") = runtime::kernels().level; // chosen here, once, at import
    define(m, "isa_available() -> list[str]", &runtime::available_levels);
    define(m, "has_threads() -> bool", &runtime::has_threads);
    define(m, "get_num_threads() -> int", &runtime::num_threads);
    define(m, "set_num_threads(n: int, /) -> None", [](py::int_ n) {
        const long threads = py::cast<long>(n);
        if (threads < 1 || threads > 1024)
            fail_value("set_num_threads", "n must be between 1 and 1024, got " + std::to_string(threads));
        runtime::set_num_threads(static_cast<int>(threads));
    });
    define(m, "available_processors() -> int", &runtime::available_processors);
    define(m, "processor_quota(root: str, /) -> int",
           [](const std::string &root) { return host::processor_quota(root.c_str()); });
    define(m, "empty(shape: tuple[int, ...], dtype: object, /) -> numpy.ndarray", &empty);
    define(m, "pool_statistics() -> dict[str, int]", &pool_statistics);
    define(m, "pool_reset_peak() -> None", &pool::reset_peak);
    define(m, "set_pool_limit(bytes: int, /) -> None", [](int64_t bytes) {
        if (bytes < 0)
            fail_value("set_pool_limit", "bytes must not be negative, got " + std::to_string(bytes));
        pool::set_limit(bytes);
    });
    define(m, "empty_pool() -> None", &pool::empty);
    define(m, "pool_fail_after(count: int, /) -> int", &pool::fail_after);
    define(m, "ceiling_gflops(dtype: str, rounds: int) -> float", &ceiling_gflops, py::arg("dtype"), py::arg("rounds"));
    define(m, "ceiling_bandwidth(bytes: int, rounds: int) -> float", &ceiling_bandwidth, py::arg("bytes"),
           py::arg("rounds"));
    define(m, "fork_join_ns(rounds: int) -> float", &fork_join_ns, py::arg("rounds"));
    define(m, "cache_sizes() -> dict[str, int]", &cache_sizes);
    PYBIND11_NUMPY_DTYPE(profiler::Record, name, shape, dtype, flops, bytes, start_ns, end_ns, thread, path, threads,
                         forks, parallel_ns, busy_ns, slowest_ns, pool_bytes);
    PYBIND11_NUMPY_DTYPE(profiler::Range, path, thread, start_ns, end_ns);
    PYBIND11_NUMPY_DTYPE(profiler::Sample, time_ns, resident_bytes, pool_bytes, cached_bytes);
    PYBIND11_NUMPY_DTYPE(profiler::Sum, name, shape, dtype, path, flops, bytes, calls, total_ns, least_ns, most_ns,
                         parallel_ns, busy_ns, slowest_ns, forks, capacity_ns, threads);
    define(m, "explain() -> None", &profiler::explain);
    define(m, "explained() -> list[dict[str, typing.Any]]", &explained);
    define(m, "profile_start(capacity: int, /) -> bool", &profiler::start);
    define(m, "profile_clear() -> None", &profiler::clear);
    define(m, "profile_stop() -> None", &profiler::stop);
    define(m, "profile_enter(label: str, /) -> int", &profiler::enter);
    define(m, "profile_leave(token: int, /) -> None", &profiler::leave);
    define(m, "profile_snapshot() -> dict[str, typing.Any]", &profile_snapshot);
}

} // namespace nf::bindings
