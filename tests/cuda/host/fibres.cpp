#include "host/fibres.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define NF_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NF_ASAN 1
#endif
#endif
#ifdef NF_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && defined(__linux__)
// A switch without the system call that swapcontext makes: the registers that a callee keeps go on the stack, whose
// pointer is exchanged. (System V ABI, AMD64 supplement, 3.2.1.)
extern "C" void nf_switch_stack(void **save, void *load);
asm(R"(
.text
.type nf_switch_stack, @function
nf_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size nf_switch_stack, .-nf_switch_stack
)");
#define NF_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace nf::cuda::host {
namespace {

constexpr size_t kStack = 256 * 1024;
constexpr int kLanes = 32, kMostThreads = 1024;

enum class State { ready, at_barrier, in_warp, waiting, ended };

#ifdef NF_OWN_SWITCH
struct Context {
    void *stack_pointer = nullptr;
};
void switch_context(Context &from, Context &to) { nf_switch_stack(&from.stack_pointer, to.stack_pointer); }
void prepare(Context &context, char *stack, void (*entry)()) {
    void **top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(stack) + kStack) & ~uintptr_t(15));
    *--top = nullptr; // where a caller's address would be: aligned as after a call
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; ++i)
        *--top = nullptr;
    context.stack_pointer = top;
}
#else
typedef ucontext_t Context;
void switch_context(Context &from, Context &to) { swapcontext(&from, &to); }
void prepare(Context &context, char *stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

struct Fibre {
    std::unique_ptr<char[]> stack{new char[kStack]};
    Context context;
    State state = State::ended;
    const char *operation = nullptr;
    const std::function<bool()> *done = nullptr; // of what it waits for
    std::unique_ptr<Carried> carried;
    void *fake_stack = nullptr;
};

constexpr int kNamed = 16;
struct Named {
    int arrived = 0, expected = 0;
    unsigned generation = 0;
    bool any = false, answer = false;
};

struct Warp {
    int arrived = 0;
    unsigned generation = 0;
    const char *operation = nullptr;
    char given[2][kLanes][kExchange]; // two: a lane that is ahead must not write where another still reads
};

struct Grid {
    std::vector<Fibre> fibres;
    std::vector<Warp> warps;
    Named named[kNamed];
    std::vector<std::function<void()>> jobs;
    std::unique_ptr<Carried> carried;
    Context main;
    void *main_fake_stack = nullptr;
    const void *main_stack = nullptr;
    size_t main_stack_size = 0;
    int threads = 0, current = 0, ended = 0, at_barrier = 0;
    bool any = false, answer = false;
    int64_t block = 0, blocks = 0;
    std::unique_ptr<char[]> shared;
    size_t shared_size = 0;
    std::exception_ptr error;
    const std::function<void()> *body = nullptr;
};

thread_local Grid *grid = nullptr;
thread_local uint64_t schedule = 0;
int64_t meetings = 0;

// Marsaglia's xorshift64, 2003.
uint64_t next_random() {
    schedule ^= schedule << 13;
    schedule ^= schedule >> 7;
    schedule ^= schedule << 17;
    return schedule;
}

// AddressSanitizer must know which stack is in use.
void announce([[maybe_unused]] void **fake_stack, [[maybe_unused]] const void *stack, [[maybe_unused]] size_t size) {
#ifdef NF_ASAN
    __sanitizer_start_switch_fiber(fake_stack, stack, size);
#endif
}
void arrived_from_main_or_fibre(void *fake_stack) {
#ifdef NF_ASAN
    const void *stack;
    size_t size;
    __sanitizer_finish_switch_fiber(fake_stack, &stack, &size);
    if (!grid->main_stack) { // only the first switch of all comes from there
        grid->main_stack = stack;
        grid->main_stack_size = size;
    }
#else
    (void)fake_stack;
#endif
}

void to_fibre(int next, Context &from, void **fake_stack) {
    Fibre &fibre = grid->fibres[size_t(next)];
    grid->current = next;
    announce(fake_stack, fibre.stack.get(), kStack);
    switch_context(from, fibre.context);
}
void to_main(Fibre &from, bool for_good) {
    announce(for_good ? nullptr : &from.fake_stack, grid->main_stack, grid->main_stack_size);
    switch_context(from.context, grid->main);
}

bool can_run(const Fibre &fibre) {
    return fibre.state == State::ready || (fibre.state == State::waiting && (*fibre.done)());
}

void run_job() {
    const size_t which = schedule ? next_random() % grid->jobs.size() : 0;
    const std::function<void()> job = std::move(grid->jobs[which]);
    grid->jobs.erase(grid->jobs.begin() + long(which));
    job();
}

int next_ready() {
    try {
        if (!grid->jobs.empty() && schedule && next_random() % 64 == 0)
            run_job();
        for (;; run_job()) {
            const int first = schedule ? int(next_random() % uint64_t(grid->threads)) : grid->current + 1;
            for (int i = 0; i < grid->threads; ++i) {
                const int candidate = (first + i) % grid->threads;
                if (can_run(grid->fibres[size_t(candidate)]))
                    return candidate;
            }
            if (grid->jobs.empty())
                return -1;
        }
    } catch (...) {
        grid->error = std::current_exception();
        return -1;
    }
}

// Lets others run until this fibre is ready. If none is, they wait for each other: the main context says so.
void wait() {
    Fibre &self = grid->fibres[size_t(grid->current)];
    const int next = next_ready();
    if (next == grid->current) // a job did what it waited for
        return;
    if (next < 0)
        to_main(self, false);
    else
        to_fibre(next, self.context, &self.fake_stack);
    arrived_from_main_or_fibre(self.fake_stack);
}

void entry() {
    arrived_from_main_or_fibre(nullptr);
    Fibre &self = grid->fibres[size_t(grid->current)];
    try {
        (*grid->body)();
        if (self.carried)
            self.carried->check();
    } catch (...) {
        grid->error = std::current_exception();
    }
    self.state = State::ended;
    ++grid->ended;
    const int next = grid->error ? -1 : next_ready();
    if (next < 0)
        to_main(self, true);
    else
        to_fibre(next, self.context, nullptr);
}

std::string who_waits() {
    std::string text = "the threads of a block wait for each other:";
    const struct {
        State state;
        const char *words;
    } kinds[] = {{State::at_barrier, "at a barrier"},
                 {State::in_warp, "for their warp"},
                 {State::waiting, "for something"},
                 {State::ended, "ended"}};
    for (const auto &kind : kinds) {
        int count = 0, first = -1;
        for (int i = 0; i < grid->threads; ++i)
            if (grid->fibres[size_t(i)].state == kind.state) {
                ++count;
                first = first < 0 ? i : first;
            }
        if (count > 0) {
            text += " " + std::to_string(count) + " " + kind.words + " (the first is thread " + std::to_string(first);
            if (kind.state == State::in_warp || kind.state == State::waiting)
                text += std::string(", in ") + grid->fibres[size_t(first)].operation;
            text += ");";
        }
    }
    text.back() = '.';
    return text;
}

void run_block() {
    Grid &all = *grid;
    // Of exactly the size that was asked for, so that AddressSanitizer sees what is beyond.
    all.shared.reset(new char[all.shared_size ? all.shared_size : 1]);
    std::memset(all.shared.get(), 0xff, all.shared_size ? all.shared_size : 1);
    all.ended = all.at_barrier = 0;
    std::fill(std::begin(all.named), std::end(all.named), Named());
    all.jobs.clear();
    all.carried.reset();
    all.current = all.threads - 1; // without a schedule thread 0 is next
    all.any = false;
    all.warps.assign(size_t(all.threads / kLanes), Warp());
    for (Fibre &fibre : all.fibres) {
#ifdef NF_ASAN
        __asan_unpoison_memory_region(fibre.stack.get(), kStack); // a kernel that failed left its frames
#endif
        prepare(fibre.context, fibre.stack.get(), entry);
        fibre.state = State::ready;
        fibre.fake_stack = nullptr;
        fibre.carried.reset();
    }
    to_fibre(next_ready(), all.main, &all.main_fake_stack);
#ifdef NF_ASAN
    __sanitizer_finish_switch_fiber(all.main_fake_stack, nullptr, nullptr);
#endif
    if (all.error)
        std::rethrow_exception(all.error);
    if (all.ended < all.threads)
        fail(who_waits());
    if (!all.jobs.empty())
        fail("a block ended while something was under way to its shared memory");
    for (int id = 0; id < kNamed; ++id)
        if (all.named[id].arrived > 0)
            fail("a block ended with threads counted at barrier " + std::to_string(id));
    if (all.carried)
        all.carried->check();
}

} // namespace

void run_grid(int64_t blocks, int threads, size_t shared, const std::function<void()> &body) {
    if (grid)
        fail("a kernel cannot launch another");
    if (threads <= 0 || threads > kMostThreads || threads % kLanes != 0)
        fail("a block must have a multiple of 32 threads, 1024 at most, got " + std::to_string(threads));
    Grid all;
    all.fibres = std::vector<Fibre>(size_t(threads));
    all.threads = threads;
    all.blocks = blocks;
    all.shared_size = shared;
    all.body = &body;
    grid = &all;
    struct Leave {
        ~Leave() { grid = nullptr; }
    } leave;
    const bool backwards = schedule && next_random() % 2;
    for (int64_t i = 0; i < blocks; ++i) {
        all.block = backwards ? blocks - 1 - i : i;
        run_block();
    }
}

void set_schedule(uint64_t seed) { schedule = seed; }
int64_t warp_meetings() { return meetings; }

int thread() { return grid->current; }
int threads() { return grid->threads; }
int64_t block() { return grid->block; }
int64_t blocks() { return grid->blocks; }
char *shared_memory() { return grid->shared.get(); }
size_t shared_size() { return grid->shared_size; }

bool meet_block(bool condition) {
    Grid &all = *grid;
    all.any = all.any || condition;
    if (++all.at_barrier < all.threads) {
        all.fibres[size_t(all.current)].state = State::at_barrier;
        wait();
        return all.answer;
    }
    all.at_barrier = 0;
    all.answer = all.any; // nobody can come to the next barrier before all have read it
    all.any = false;
    for (Fibre &fibre : all.fibres)
        fibre.state = State::ready;
    return all.answer;
}

const char *meet_warp(const char *operation, const void *mine, size_t size) {
    if (size > kExchange)
        fail("a lane can give 64 bytes at most");
    const int self = grid->current;
    Warp &warp = grid->warps[size_t(self / kLanes)];
    if (warp.arrived == 0)
        warp.operation = operation;
    else if (std::strcmp(warp.operation, operation) != 0)
        fail(std::string("lanes of a warp meet in different operations: ") + warp.operation + " and " + operation);
    auto &given = warp.given[warp.generation % 2];
    if (size > 0)
        std::memcpy(given[self % kLanes], mine, size);
    if (++warp.arrived < kLanes) {
        Fibre &fibre = grid->fibres[size_t(self)];
        fibre.state = State::in_warp;
        fibre.operation = operation;
        wait();
        return given[0];
    }
    warp.arrived = 0;
    ++warp.generation;
    ++meetings;
    for (int i = self / kLanes * kLanes, end = i + kLanes; i < end; ++i)
        grid->fibres[size_t(i)].state = State::ready;
    return given[0];
}

void wait_until(const char *what, const std::function<bool()> &done) {
    if (done())
        return;
    Fibre &self = grid->fibres[size_t(grid->current)];
    self.state = State::waiting;
    self.operation = what;
    self.done = &done;
    wait();
    self.state = State::ready;
}

bool meet_named(int id, int threads, bool waits, bool condition) {
    if (id < 1 || id >= kNamed)
        fail("barriers of some warps are numbered from 1 to 15, got " + std::to_string(id));
    Named &barrier = grid->named[id];
    if (threads <= 0 || threads % kLanes != 0 || (barrier.arrived > 0 && barrier.expected != threads))
        fail("barrier " + std::to_string(id) + ": " + std::to_string(threads) + " threads, others said " +
             std::to_string(barrier.expected));
    barrier.expected = threads;
    barrier.any = barrier.any || condition;
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == threads) {
        barrier.answer = barrier.any;
        barrier.arrived = 0;
        barrier.any = false;
        ++barrier.generation;
    } else if (waits) {
        wait_until("a barrier of some warps", [&] { return barrier.generation != generation; });
    }
    return barrier.answer;
}

void run_later(std::function<void()> job) { grid->jobs.push_back(std::move(job)); }
std::unique_ptr<Carried> &carried_by_block() { return grid->carried; }
std::unique_ptr<Carried> &carried_by_thread() { return grid->fibres[size_t(grid->current)].carried; }

void fail(const std::string &message) { throw KernelError(message); }

} // namespace nf::cuda::host
