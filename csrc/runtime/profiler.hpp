// Profiler: each operation declares its name, shape, floating-point operations and bytes moved, and leaves one record a
// call; ranges (layers, the user's own) nest and give each record a path. Off, a scope costs one predictable branch.
#pragma once
#include "core/dtype.hpp"
#include "runtime/plan.hpp"

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace nf::profiler {

constexpr int kMaxShape = 6;

struct Work {
    double flops, bytes;
};

// Plain data: arrays of these four are handed to NumPy as they are.
struct Record {
    int64_t shape[kMaxShape];
    double flops, bytes;
    int64_t start_ns, end_ns; // of the monotonic clock
    // In parallel regions: how long they took, the threads' time in them together, and the slowest thread of each.
    int64_t parallel_ns, busy_ns, slowest_ns;
    int64_t pool_bytes; // in use when the call ended
    int32_t name, dtype, path, thread, threads, forks;
};

struct Range {
    int64_t start_ns, end_ns;
    int32_t path, thread;
};

// All calls of one (name, dtype, shape, path), those whose records were dropped included.
struct Sum {
    int64_t shape[kMaxShape];
    double flops, bytes;
    int64_t calls, total_ns, least_ns, most_ns, parallel_ns, busy_ns, slowest_ns, forks, capacity_ns;
    int32_t name, dtype, path, threads;
};

struct Sample {
    int64_t time_ns, resident_bytes, pool_bytes, cached_bytes;
};

// A node of the tree of paths. 0 and 1 are roots: the thread that started the profile, and all others.
struct Path {
    int32_t parent;
    std::string label;
    int64_t calls, total_ns;
};

struct Snapshot {
    std::vector<Record> records; // the newest, oldest first
    std::vector<Range> ranges;
    std::vector<Sample> samples;
    std::vector<Sum> sums;
    std::vector<Path> paths;
    std::vector<std::string> names;
    int64_t dropped_records, dropped_ranges, dropped_samples, start_ns, stop_ns;
    int32_t thread;
};

// A call that was explained instead of done.
struct Explanation {
    const char *name;
    DType dtype;
    int64_t shape[kMaxShape];
    Work work;
    Plan plan;
};

// How many want to see calls: a profile, and threads that explain theirs.
extern std::atomic<int> watchers;

// The only price of a profile that is off. A build without it (NUMFORMER_NO_PROFILER) is what that price is counted by.
inline bool is_on() {
#if defined(NUMFORMER_NO_PROFILER)
    return false;
#else
    return __builtin_expect(watchers.load(std::memory_order_relaxed) != 0, 0);
#endif
}

int64_t now();
// start() forgets what was recorded; rings keep the newest `capacity` records, ranges and samples. False where a
// profile is on already.
bool start(int64_t capacity);
// Forgets what was recorded but goes on, inside the ranges that are open.
void clear();
// Closes the ranges that the calling thread has open.
void stop();
Snapshot take();

// enter() gives a token for leave(), which also closes what was opened inside and not closed.
int64_t enter(const std::string &label);
void leave(int64_t token);

// Between the two, calls of this thread only say what they would do; where a profile is on, it does not see them.
void explain();
std::vector<Explanation> explained();

// Time of each thread of a parallel region, for the record of the call that it belongs to.
class Team {
  public:
    Team() : on_(is_on()), begin_(on_ ? now() : 0) {}
    int64_t time() const { return on_ ? now() : 0; }
    // Called by each thread with the time() at which it began.
    void add(int64_t begin) {
        if (on_)
            add_time(now() - begin);
    }
    // By the thread that forked, after the join.
    void end(int64_t threads) {
        if (on_)
            finish(threads);
    }

  private:
    void add_time(int64_t ns);
    void finish(int64_t threads);

    const bool on_;
    const int64_t begin_;
    std::atomic<int64_t> busy_{0}, slowest_{0};
};

class Scope {
  public:
    // `work` is called only when a profile is on.
    template <class F>
    Scope(const char *name, DType dtype, std::initializer_list<int64_t> shape, F work) : on_(is_on()) {
        if (on_)
            begin(name, dtype, shape, work());
    }
    ~Scope() {
        if (on_)
            end();
    }
    // Where to say what the call would do instead of doing it; null where it is to be done.
    Plan *plan() const { return on_ ? plan_ : nullptr; }
    Scope(const Scope &) = delete;
    Scope &operator=(const Scope &) = delete;

  private:
    void begin(const char *name, DType dtype, std::initializer_list<int64_t> shape, Work work);
    void end();
    const bool on_;
    const char *name_; // this and the following are not initialised when off
    Plan *plan_;
    Record record_;
};

} // namespace nf::profiler
