#include "runtime/profiler.hpp"

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>
#include <thread>

namespace nf::profiler {

std::atomic<bool> enabled{false};

namespace {
std::mutex mutex;
std::vector<Record> records;
int64_t limit = 0, lost = 0;
} // namespace

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

void add(const Record &record) {
    std::lock_guard<std::mutex> guard(mutex);
    if (static_cast<int64_t>(records.size()) < limit)
        records.push_back(record);
    else
        ++lost;
}

void start(int64_t capacity) {
    std::lock_guard<std::mutex> guard(mutex);
    records.clear();
    limit = capacity;
    lost = 0;
    enabled.store(true);
}

void stop() { enabled.store(false); }

std::vector<Record> take(int64_t *dropped) {
    std::lock_guard<std::mutex> guard(mutex);
    *dropped = lost;
    return records;
}

void Scope::begin(const char *name, std::initializer_list<int64_t> shape, double flops, double bytes) {
    record_.name = name;
    std::fill(record_.shape, record_.shape + kMaxShape, 0);
    std::copy_n(shape.begin(), std::min(shape.size(), size_t(kMaxShape)), record_.shape);
    record_.flops = flops;
    record_.bytes = bytes;
    record_.thread = static_cast<int64_t>(std::hash<std::thread::id>{}(std::this_thread::get_id()) & 0x7fffffff);
    record_.start_ns = now();
}

void Scope::end() {
    record_.end_ns = now();
    add(record_);
}

} // namespace nf::profiler
