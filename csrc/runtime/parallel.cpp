#include "runtime/parallel.hpp"

#include "runtime/profiler.hpp"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace nf::runtime {
namespace {

// A cgroup's CPU quota in whole processors, rounded up; 0 where there is none (version 2, then version 1).
int cgroup_quota() {
    long long quota = 0, period = 0;
    if (FILE *file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
        const int fields = std::fscanf(file, "%lld %lld", &quota, &period); // "max 100000" reads no number
        std::fclose(file);
        return fields == 2 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
    }
    auto read_number = [](const char *path) {
        long long value = 0;
        if (FILE *file = std::fopen(path, "r")) {
            if (std::fscanf(file, "%lld", &value) != 1)
                value = 0;
            std::fclose(file);
        }
        return value;
    };
    quota = read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    period = read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    return quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

int initial_threads() {
    if (const char *text = std::getenv("OMP_NUM_THREADS")) {
        const int n = std::atoi(text);
        if (n > 0)
            return n;
    }
    return available_processors();
}

std::atomic<int> requested_threads{0};
std::atomic<bool> forked_child{false};

// libgomp's pool of threads does not survive a fork: the child stays serial, and always answers.
const int register_fork_handler = pthread_atfork(nullptr, nullptr, [] { forked_child.store(true); });

} // namespace

int available_processors() {
    int processors = omp_get_num_procs();
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0)
        processors = CPU_COUNT(&allowed);
    const int quota = cgroup_quota();
    if (quota > 0 && quota < processors)
        processors = quota;
    return processors > 0 ? processors : 1;
}

int num_threads() {
    int n = requested_threads.load(std::memory_order_relaxed);
    if (n == 0) {
        n = initial_threads();
        requested_threads.store(n);
    }
    return n;
}

void set_num_threads(int n) { requested_threads.store(n); }

int threads_here() {
    if (forked_child.load(std::memory_order_relaxed) || omp_in_parallel())
        return 1;
    return num_threads();
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
}

void parallel_tasks(int64_t count, void *context, void (*body)(void *context, int64_t task)) {
    const int64_t threads = threads_for(count, 1);
    if (threads <= 1) {
        for (int64_t task = 0; task < count; ++task)
            body(context, task);
        return;
    }
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
}

} // namespace nf::runtime
