// The only place that knows OpenMP. Work is divided into pieces that do not depend on each other, so results do not
// depend on who computes what. C-style callbacks: kernels of every level call these without sharing a template.
#pragma once
#include <stdint.h>

namespace nf::runtime {

// What numformer uses: set_num_threads, else OMP_NUM_THREADS, else the processors this process may use.
int num_threads();
void set_num_threads(int n);
int available_processors();

// Threads that a call made here and now would get: 1 inside a parallel region and in a forked child.
int threads_here();

// How many threads share `count` items, at least `grain` each.
int64_t threads_for(int64_t count, int64_t grain);
// body(context, begin, end) over contiguous ranges of [0, count) of at least `grain` items, one a thread.
void parallel_ranges(int64_t count, int64_t grain, void *context,
                     void (*body)(void *context, int64_t begin, int64_t end));
// body(context, task) for each task in [0, count), taken in order by whichever thread is free.
void parallel_tasks(int64_t count, void *context, void (*body)(void *context, int64_t task));

} // namespace nf::runtime
