// What every kernel file needs: scratch memory from the pool and loops over threads, with internal linkage.
#pragma once
#include "core/pool.hpp"
#include "runtime/kernels.hpp"
#include "runtime/parallel.hpp"
#include "simd/vec.hpp"

#include <type_traits>

namespace nf::NUMFORMER_LEVEL {

// Memory from the pool for the time of a scope; null when there is none left.
template <class T> struct Scratch {
    T *data;
    explicit Scratch(int64_t count) : data(static_cast<T *>(pool::allocate(size_t(count) * sizeof(T)))) {}
    ~Scratch() { pool::release(data); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    explicit operator bool() const { return data != nullptr; }
};

// Set from any thread when memory ran out; read after the loop.
struct Failure {
    bool happened = false;
    void set() { __atomic_store_n(&happened, true, __ATOMIC_RELAXED); }
};

// f(begin, end) on each thread's contiguous share of [0, count).
template <class F> NF_INLINE void parallel_ranges(int64_t count, int64_t grain, F &&f) {
    runtime::parallel_ranges(count, grain, &f, [](void *context, int64_t begin, int64_t end) {
        (*static_cast<std::remove_reference_t<F> *>(context))(begin, end);
    });
}

// f(task) for each task, whichever thread is free.
template <class F> NF_INLINE void parallel_tasks(int64_t count, F &&f) {
    runtime::parallel_tasks(
        count, &f, [](void *context, int64_t task) { (*static_cast<std::remove_reference_t<F> *>(context))(task); });
}

// One of the facts of a plan.
NF_INLINE void tell(Plan &plan, const char *name, int64_t value) {
    if (plan.count < kMostFacts)
        plan.facts[plan.count++] = {name, value, false};
}
NF_INLINE void tell_whether(Plan &plan, const char *name, bool value) {
    if (plan.count < kMostFacts)
        plan.facts[plan.count++] = {name, value, true};
}

NF_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
NF_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
NF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
NF_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

} // namespace nf::NUMFORMER_LEVEL
