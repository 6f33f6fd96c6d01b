#include "runtime/profiler.hpp"

#include "core/host.hpp"
#include "core/pool.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <unordered_map>

namespace nf::profiler {

std::atomic<int> watchers{0};

namespace {

// What a day-long run may grow to beside the rings: more shapes are summed without theirs, more ranges as their parent.
constexpr size_t kMostSums = 1 << 16, kMostPaths = 1 << 16;
constexpr int64_t kSampleEvery = 1'000'000; // ns; a look at the resident memory costs about 1 us

// The newest `limit` items.
template <class T> class Ring {
  public:
    void reset(int64_t limit) {
        items_.clear();
        items_.shrink_to_fit();
        limit_ = static_cast<size_t>(limit);
        count_ = 0;
    }
    void push(const T &item) {
        if (items_.size() < limit_)
            items_.push_back(item);
        else
            items_[count_ % limit_] = item;
        ++count_;
    }
    std::vector<T> ordered() const {
        std::vector<T> all = items_;
        if (count_ > limit_)
            std::rotate(all.begin(), all.begin() + static_cast<int64_t>(count_ % limit_), all.end());
        return all;
    }
    int64_t dropped() const { return static_cast<int64_t>(count_ - items_.size()); }

  private:
    std::vector<T> items_;
    size_t limit_ = 1, count_ = 0;
};

struct Key {
    int32_t name, dtype, path;
    int64_t shape[kMaxShape];
    bool operator==(const Key &other) const {
        return name == other.name && dtype == other.dtype && path == other.path &&
               std::equal(shape, shape + kMaxShape, other.shape);
    }
};

struct Hash {
    size_t operator()(const Key &key) const {
        // FNV-1a by words.
        uint64_t h = 14695981039346656037u;
        auto mix = [&h](int64_t x) { h = (h ^ static_cast<uint64_t>(x)) * 1099511628211u; };
        mix(key.name);
        mix(key.dtype);
        mix(key.path);
        for (int64_t extent : key.shape)
            mix(extent);
        return static_cast<size_t>(h ^ (h >> 32));
    }
};

struct State {
    std::mutex mutex;
    bool recording = false;
    int64_t capacity = 1, start_ns = 0, stop_ns = 0;
    int32_t thread = 0;
    Ring<Record> records;
    Ring<Range> ranges;
    Ring<Sample> samples;
    std::unordered_map<Key, Sum, Hash> sums;
    std::vector<Path> paths;
    std::map<std::pair<int32_t, std::string>, int32_t> children;
    std::vector<std::string> names;
    std::unordered_map<const char *, int32_t> name_numbers;

    State();
    void forget(int64_t time) {
        records.reset(capacity);
        ranges.reset(capacity);
        samples.reset(capacity);
        sums.clear();
        for (Path &path : paths)
            path.calls = path.total_ns = 0;
        start_ns = time;
        stop_ns = 0;
    }
};

State &state() {
    static State *instance = new State; // never destroyed: a thread may end a call after static destructors ran
    return *instance;
}

std::atomic<int64_t> session{0}, next_sample{0};

struct Open {
    int32_t path;
    int64_t start_ns;
};

// What a thread knows of itself. Not cleared when a profile ends: another session is noticed by its number.
struct Thread {
    int32_t id = 0;
    int64_t session = -1;
    std::vector<Open> open;
    int64_t parallel_ns = 0, busy_ns = 0, slowest_ns = 0;
    int32_t threads = 1, forks = 0;
    bool explaining = false;
    std::deque<Explanation> explanations; // does not move what plans point to
};

Thread &this_thread() {
    thread_local Thread thread;
    const int64_t current = session.load(std::memory_order_relaxed);
    if (thread.session != current) {
        thread.session = current;
        thread.open.clear();
        thread.id = host::thread_number(); // again in every session: a fork keeps this object but changes the number
    }
    return thread;
}

// A fork copies the mutex in whatever state another thread had it: take it before, release it on both sides after.
// A child's records would reach nobody: in the child the profile is off.
State::State() {
    host::at_fork([] { state().mutex.lock(); }, [] { state().mutex.unlock(); },
                  [] {
                      watchers.store(0);
                      state().recording = this_thread().explaining = false;
                      state().mutex.unlock();
                  });
}

// The following expect the mutex to be held.

int32_t path_of(const Thread &thread, const State &s) {
    return thread.open.empty() ? (thread.id == s.thread ? 0 : 1) : thread.open.back().path;
}

int32_t child_of(State &s, int32_t parent, const std::string &label) {
    const auto found = s.children.find({parent, label});
    if (found != s.children.end())
        return found->second;
    if (s.paths.size() >= kMostPaths)
        return parent;
    const int32_t path = static_cast<int32_t>(s.paths.size());
    s.paths.push_back({parent, label, 0, 0});
    s.children.emplace(std::make_pair(parent, label), path);
    return path;
}

void close_innermost(State &s, Thread &thread, int64_t time) {
    const Open open = thread.open.back();
    thread.open.pop_back();
    const int64_t start = std::max(open.start_ns, s.start_ns); // clear() may have come in between
    s.ranges.push({start, time, open.path, thread.id});
    s.paths[static_cast<size_t>(open.path)].calls += 1;
    s.paths[static_cast<size_t>(open.path)].total_ns += time - start;
}

void add_to_sums(State &s, const Record &r) {
    Key key{r.name, r.dtype, r.path, {}};
    std::copy_n(r.shape, kMaxShape, key.shape);
    auto found = s.sums.find(key);
    if (found == s.sums.end()) {
        if (s.sums.size() >= kMostSums)
            std::fill_n(key.shape, kMaxShape, 0);
        Sum fresh{};
        std::copy_n(key.shape, kMaxShape, fresh.shape);
        fresh.name = r.name;
        fresh.dtype = r.dtype;
        fresh.path = r.path;
        fresh.least_ns = INT64_MAX;
        found = s.sums.emplace(key, fresh).first;
    }
    Sum &sum = found->second;
    const int64_t ns = r.end_ns - r.start_ns;
    sum.flops += r.flops;
    sum.bytes += r.bytes;
    sum.calls += 1;
    sum.total_ns += ns;
    sum.least_ns = std::min(sum.least_ns, ns);
    sum.most_ns = std::max(sum.most_ns, ns);
    sum.parallel_ns += r.parallel_ns;
    sum.busy_ns += r.busy_ns;
    sum.slowest_ns += r.slowest_ns;
    sum.capacity_ns += r.slowest_ns * r.threads;
    sum.forks += r.forks;
    sum.threads = std::max(sum.threads, r.threads);
}

} // namespace

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

bool start(int64_t capacity) {
    State &s = state();
    std::lock_guard<std::mutex> guard(s.mutex);
    if (s.recording)
        return false;
    ++session;
    next_sample.store(0);
    s.capacity = std::max<int64_t>(capacity, 1);
    s.thread = this_thread().id;
    s.paths.assign({{-1, "", 0, 0}, {-1, "", 0, 0}});
    s.children.clear();
    s.names.clear();
    s.name_numbers.clear();
    s.forget(now());
    s.recording = true;
    ++watchers;
    return true;
}

void clear() {
    State &s = state();
    std::lock_guard<std::mutex> guard(s.mutex);
    s.forget(now());
}

void stop() {
    State &s = state();
    std::lock_guard<std::mutex> guard(s.mutex);
    if (!s.recording)
        return;
    s.stop_ns = now();
    for (Thread &thread = this_thread(); !thread.open.empty();)
        close_innermost(s, thread, s.stop_ns);
    s.recording = false;
    --watchers;
}

Snapshot take() {
    State &s = state();
    std::lock_guard<std::mutex> guard(s.mutex);
    Snapshot all{s.records.ordered(),
                 s.ranges.ordered(),
                 s.samples.ordered(),
                 {},
                 s.paths,
                 s.names,
                 s.records.dropped(),
                 s.ranges.dropped(),
                 s.samples.dropped(),
                 s.start_ns,
                 s.stop_ns ? s.stop_ns : now(),
                 s.thread};
    for (const auto &[key, sum] : s.sums)
        all.sums.push_back(sum);
    return all;
}

int64_t enter(const std::string &label) {
    State &s = state();
    std::lock_guard<std::mutex> guard(s.mutex);
    if (!s.recording)
        return -1;
    Thread &thread = this_thread();
    const int64_t depth = static_cast<int64_t>(thread.open.size());
    const int32_t path = child_of(s, path_of(thread, s), label);
    thread.open.push_back({path, now()});
    return thread.session << 20 | depth;
}

void leave(int64_t token) {
    const int64_t time = now();
    State &s = state();
    std::lock_guard<std::mutex> guard(s.mutex);
    if (token < 0 || !s.recording)
        return;
    Thread &thread = this_thread();
    if (thread.session != token >> 20)
        return;
    while (static_cast<int64_t>(thread.open.size()) > (token & ((1 << 20) - 1)))
        close_innermost(s, thread, time);
}

void explain() {
    Thread &thread = this_thread();
    thread.explanations.clear();
    if (!thread.explaining)
        ++watchers;
    thread.explaining = true;
}

std::vector<Explanation> explained() {
    Thread &thread = this_thread();
    if (thread.explaining)
        --watchers;
    thread.explaining = false;
    std::vector<Explanation> all(thread.explanations.begin(), thread.explanations.end());
    thread.explanations.clear();
    return all;
}

void Team::add_time(int64_t ns) {
    busy_.fetch_add(ns, std::memory_order_relaxed);
    int64_t slowest = slowest_.load(std::memory_order_relaxed);
    while (ns > slowest && !slowest_.compare_exchange_weak(slowest, ns, std::memory_order_relaxed)) {
    }
}

void Team::finish(int64_t threads) {
    Thread &thread = this_thread();
    thread.parallel_ns += now() - begin_;
    thread.busy_ns += busy_.load(std::memory_order_relaxed);
    thread.slowest_ns += slowest_.load(std::memory_order_relaxed);
    thread.threads = std::max(thread.threads, static_cast<int32_t>(threads));
    thread.forks += 1;
}

void Scope::begin(const char *name, DType dtype, std::initializer_list<int64_t> shape, Work work) {
    Thread &thread = this_thread();
    plan_ = nullptr;
    if (thread.explaining) {
        thread.explanations.push_back({name, dtype, {}, work, Plan{}});
        Explanation &explanation = thread.explanations.back();
        std::copy_n(shape.begin(), std::min(shape.size(), size_t(kMaxShape)), explanation.shape);
        explanation.plan.threads = 1;
        plan_ = &explanation.plan;
        return;
    }
    thread.parallel_ns = thread.busy_ns = thread.slowest_ns = 0;
    thread.threads = 1;
    thread.forks = 0;
    name_ = name;
    record_ = Record{};
    std::copy_n(shape.begin(), std::min(shape.size(), size_t(kMaxShape)), record_.shape);
    record_.flops = work.flops;
    record_.bytes = work.bytes;
    record_.dtype = static_cast<int32_t>(dtype);
    record_.thread = thread.id;
    record_.start_ns = now();
}

void Scope::end() {
    if (plan_)
        return;
    record_.end_ns = now();
    const Thread &thread = this_thread();
    record_.parallel_ns = thread.parallel_ns;
    record_.busy_ns = thread.busy_ns;
    record_.slowest_ns = thread.slowest_ns;
    record_.threads = thread.threads;
    record_.forks = thread.forks;
    const pool::Statistics memory = pool::statistics();
    record_.pool_bytes = memory.bytes_in_use;
    int64_t due = next_sample.load(std::memory_order_relaxed);
    const bool sampled =
        record_.end_ns >= due && next_sample.compare_exchange_strong(due, record_.end_ns + kSampleEvery);
    const int64_t resident = sampled ? host::resident_bytes() : 0;
    State &s = state();
    std::lock_guard<std::mutex> guard(s.mutex);
    if (!s.recording || record_.start_ns < s.start_ns || thread.id != record_.thread)
        return; // it ended after the profile did, or began before the profile or its clear()
    const auto number = s.name_numbers.emplace(name_, static_cast<int32_t>(s.names.size()));
    if (number.second)
        s.names.emplace_back(name_);
    record_.name = number.first->second;
    record_.path = path_of(thread, s);
    s.records.push(record_);
    add_to_sums(s, record_);
    if (sampled)
        s.samples.push({record_.end_ns, resident, memory.bytes_in_use, memory.bytes_cached});
}

} // namespace nf::profiler
