// Runs a grid on the host: the threads of a block are fibres of one thread of the system, switched where they meet
// (barriers, shuffles). What hardware would leave undefined is a KernelError.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

namespace nf::cuda::host {

struct KernelError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// In which order threads that could go on do so, and blocks run: 0, as they are numbered; else an order that each seed
// has of its own. Results must not depend on it, or a barrier is missing.
void set_schedule(uint64_t seed);

// How often the lanes of a warp have met so far: what a kernel does beyond memory and barriers, as a number.
int64_t warp_meetings();

// body() once for each thread of each block. Shared memory is not initialised: it holds NaNs.
void run_grid(int64_t blocks, int threads, size_t shared, const std::function<void()> &body);

// Within a body:
int thread();
int threads();
int64_t block();
int64_t blocks();
char *shared_memory();
size_t shared_size();

// The threads of the block meet, and see each other's conditions.
bool meet_block(bool condition);
// The lanes of the warp meet: each gives `size` bytes (64 at most) and gets those of all 32, which are valid until it
// meets again. All must be in the same operation.
const char *meet_warp(const char *operation, const void *mine, size_t size);
constexpr size_t kExchange = 64;

// As many threads as all say meet at barrier `id`, of 1 to 15; one that does not wait is counted only.
bool meet_named(int id, int threads, bool waits, bool condition);
// Others run until it is done. `what` says what for.
void wait_until(const char *what, const std::function<bool()> &done);
// Runs a job beside the threads: at any time, at the latest when all wait.
void run_later(std::function<void()> job);

// What a block, or a thread, carries for someone, made new for each; `check` is called where it ends.
struct Carried {
    virtual ~Carried() = default;
    virtual void check() {}
};
std::unique_ptr<Carried> &carried_by_block();
std::unique_ptr<Carried> &carried_by_thread();

[[noreturn]] void fail(const std::string &message);

} // namespace nf::cuda::host
