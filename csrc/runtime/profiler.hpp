// Profiler records: each operation declares its name, shape, floating-point operations and bytes moved.
// Off, a scope costs one predictable branch; on, one record a call.
#pragma once
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace nf::profiler {

constexpr int kMaxShape = 6;

struct Record {
    const char *name; // a string literal
    int64_t shape[kMaxShape];
    double flops, bytes;
    int64_t start_ns, end_ns; // of the monotonic clock
    int64_t thread;
};

extern std::atomic<bool> enabled;

int64_t now();
void add(const Record &record);
// start() forgets earlier records; at most `capacity` are kept, later ones are counted as dropped.
void start(int64_t capacity);
void stop();
std::vector<Record> take(int64_t *dropped);

class Scope {
  public:
    Scope(const char *name, std::initializer_list<int64_t> shape, double flops, double bytes) {
        if (enabled.load(std::memory_order_relaxed))
            begin(name, shape, flops, bytes);
    }
    ~Scope() {
        if (record_.name)
            end();
    }
    Scope(const Scope &) = delete;
    Scope &operator=(const Scope &) = delete;

  private:
    void begin(const char *name, std::initializer_list<int64_t> shape, double flops, double bytes);
    void end();
    Record record_{};
};

} // namespace nf::profiler
