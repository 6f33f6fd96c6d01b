#include "runtime/parallel.hpp"

#include "core/host.hpp"
#include "runtime/processor.hpp"
#include "runtime/profiler.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <atomic>
#include <cstdlib>

namespace nf::runtime {
namespace {

// Read when the library is loaded, as OpenMP runtimes do: later another thread may be changing the environment, and
// kernels ask without the interpreter's lock.
const int from_environment = [] {
    const char *text = std::getenv("OMP_NUM_THREADS");
    return text ? std::atoi(text) : 0;
}();

std::atomic<int> requested_threads{0};
std::atomic<bool> forked_child{false};

// libgomp's pool of threads does not survive a fork: the child stays serial, and always answers.
struct ForkHandler {
    ForkHandler() {
        host::at_fork(nullptr, nullptr, [] { forked_child.store(true); });
    }
} register_fork_handler;

} // namespace

int available_processors() {
    int processors = host::allowed_processors();
#if defined(_OPENMP)
    if (processors == 0)
        processors = omp_get_num_procs();
#endif
    const int quota = host::processor_quota();
    if (quota > 0 && quota < processors)
        processors = quota;
    return processors > 0 ? processors : 1;
}

int num_threads() {
    if (!has_threads())
        return 1;
    int n = requested_threads.load(std::memory_order_relaxed);
    if (n == 0) {
        n = from_environment > 0 ? from_environment : available_processors();
        requested_threads.store(n);
    }
    return n;
}

void set_num_threads(int n) { requested_threads.store(n); }

int threads_here() {
#if defined(_OPENMP)
    if (omp_in_parallel())
        return 1;
#endif
    return forked_child.load(std::memory_order_relaxed) ? 1 : num_threads();
}

int64_t threads_for(int64_t count, int64_t grain) {
    const int64_t pieces = (count + grain - 1) / (grain > 0 ? grain : 1), threads = threads_here();
    return pieces < threads ? pieces : threads;
}

void parallel_ranges(int64_t count, int64_t grain, void *context,
                     void (*body)(void *context, int64_t begin, int64_t end)) {
    if (count <= 0)
        return;
    const int64_t pieces = threads_for(count, grain);
    if (pieces <= 1) {
        body(context, 0, count);
        return;
    }
#if defined(_OPENMP)
    profiler::Team times;
#pragma omp parallel num_threads(static_cast<int>(pieces))
    {
        const int64_t start = times.time();
        const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
        const int64_t begin = count * me / team, end = count * (me + 1) / team;
        if (begin < end)
            body(context, begin, end);
        times.add(start);
    }
    times.end(pieces);
#endif
}

void parallel_tasks(int64_t count, void *context, void (*body)(void *context, int64_t task)) {
    const int64_t threads = threads_for(count, 1);
    if (threads <= 1) {
        for (int64_t task = 0; task < count; ++task)
            body(context, task);
        return;
    }
#if defined(_OPENMP)
    profiler::Team times;
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        const int64_t start = times.time();
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t task = 0; task < count; ++task)
            body(context, task);
        times.add(start);
    }
    times.end(threads);
#endif
}

} // namespace nf::runtime
