#include "core/pool.hpp"

#include "core/host.hpp"
#include "core/pool_failure.hpp"

#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace nf::pool {
namespace {

constexpr int64_t kDefaultLimit = int64_t(2) << 30;

// Blocks side by side, from one end of a large piece of memory to the other; it goes with the last of them. Pages of it
// that no block has reached were never touched, and are none.
struct Slab {
    char *memory;
    size_t used, blocks;
};
constexpr size_t kHugePage = size_t(2) << 20, kSlabBytes = 16 * kHugePage;
// Smaller blocks would not be worth a huge page to the first of them, larger ones have most of theirs by themselves.
constexpr size_t kLeastTogether = size_t(256) << 10, kMostTogether = kSlabBytes / 2;

// Precedes every block; as long as the alignment, so that the block behind it is aligned too.
struct alignas(kAlignment) Header {
    size_t capacity;
    Slab *slab; // null for a block by itself
};

struct Pool {
    std::mutex mutex;
    std::map<size_t, std::vector<Header *>> free_blocks; // by capacity
    Statistics counters{0, 0, 0, kDefaultLimit};
    Slab *filling = nullptr;    // where the next block goes that lies beside others
    int64_t until_failure = -1; // see fail_after()

    Pool();
};

Pool &instance() {
    static Pool *pool = new Pool; // never destroyed: arrays may be released after static destructors ran
    return *pool;
}

// A fork copies the mutex in whatever state another thread had it: take it before, release it on both sides after.
Pool::Pool() {
    host::at_fork([] { instance().mutex.lock(); }, [] { instance().mutex.unlock(); },
                  [] { instance().mutex.unlock(); });
}

// Eight size classes to each power of two: at most 12.5% is wasted and sizes that differ little share blocks.
size_t capacity_for(size_t bytes) {
    size_t capacity = 256;
    while (capacity < bytes)
        capacity *= 2;
    const size_t step = capacity / 16 > kAlignment ? capacity / 16 : kAlignment;
    return bytes <= 256 ? 256 : (bytes + step - 1) / step * step;
}

// The smallest free block of at least `capacity` and at most a quarter more, or null. In a training step that saves a
// twentieth of what the pool holds; larger ones would be missed by those that need them.
Header *take_cached(Pool &pool, size_t capacity) {
    for (auto entry = pool.free_blocks.lower_bound(capacity);
         entry != pool.free_blocks.end() && entry->first <= capacity + capacity / 4; ++entry) {
        auto &[size, blocks] = *entry;
        if (blocks.empty())
            continue;
        Header *block = blocks.back();
        blocks.pop_back();
        pool.counters.bytes_cached -= static_cast<int64_t>(size);
        return block;
    }
    return nullptr;
}

void drop_cached(Pool &pool) {
    for (auto &[capacity, blocks] : pool.free_blocks)
        for (Header *block : blocks)
            host::free_aligned(block);
    pool.free_blocks.clear();
    pool.counters.bytes_cached = 0;
}

void count_in_use(Pool &pool, size_t capacity) {
    pool.counters.bytes_in_use += static_cast<int64_t>(capacity);
    if (pool.counters.bytes_in_use > pool.counters.peak_bytes)
        pool.counters.peak_bytes = pool.counters.bytes_in_use;
}

void *from_system(Pool &pool, size_t alignment, size_t bytes) {
    void *memory = host::allocate_aligned(alignment, bytes);
    if (!memory) {
        drop_cached(pool);
        memory = host::allocate_aligned(alignment, bytes);
    }
    return memory;
}

bool fails(Pool &pool) { return pool.until_failure >= 0 && pool.until_failure-- == 0; }

} // namespace

void *allocate(size_t bytes) noexcept {
    if (bytes > (size_t(1) << 46))
        return nullptr;
    Pool &pool = instance();
    const size_t capacity = capacity_for(bytes);
    std::lock_guard<std::mutex> guard(pool.mutex);
    if (fails(pool))
        return nullptr;
    Header *block = take_cached(pool, capacity);
    if (!block) {
        block = static_cast<Header *>(from_system(pool, kAlignment, sizeof(Header) + capacity));
        if (!block)
            return nullptr;
        *block = {capacity, nullptr};
    }
    count_in_use(pool, block->capacity);
    return block + 1;
}

void *allocate_together(size_t bytes) noexcept {
    const size_t capacity = (bytes + kAlignment - 1) / kAlignment * kAlignment, needed = sizeof(Header) + capacity;
    if (bytes < kLeastTogether || needed > kMostTogether)
        return allocate(bytes);
    Pool &pool = instance();
    std::lock_guard<std::mutex> guard(pool.mutex);
    if (fails(pool))
        return nullptr;
    if (!pool.filling || kSlabBytes - pool.filling->used < needed) {
        Slab *slab = new (std::nothrow) Slab{nullptr, 0, 0};
        if (slab)
            slab->memory = static_cast<char *>(from_system(pool, kHugePage, kSlabBytes));
        if (!slab || !slab->memory) {
            delete slab;
            return nullptr;
        }
        pool.filling = slab;
    }
    Slab *slab = pool.filling;
    Header *block = reinterpret_cast<Header *>(slab->memory + slab->used);
    *block = {capacity, slab};
    slab->used += needed;
    ++slab->blocks;
    count_in_use(pool, capacity);
    return block + 1;
}

void release(void *pointer) noexcept {
    if (!pointer)
        return;
    Pool &pool = instance();
    Header *block = static_cast<Header *>(pointer) - 1;
    const int64_t capacity = static_cast<int64_t>(block->capacity);
    std::lock_guard<std::mutex> guard(pool.mutex);
    pool.counters.bytes_in_use -= capacity;
    if (Slab *slab = block->slab) {
        if (--slab->blocks == 0) {
            if (pool.filling == slab)
                pool.filling = nullptr;
            host::free_aligned(slab->memory);
            delete slab;
        }
        return;
    }
    if (pool.counters.bytes_cached + capacity <= pool.counters.limit) {
        try {
            pool.free_blocks[block->capacity].push_back(block);
            pool.counters.bytes_cached += capacity;
            return;
        } catch (...) { // no memory for the book-keeping: fall through and return the block
        }
    }
    host::free_aligned(block);
}

Statistics statistics() {
    Pool &pool = instance();
    std::lock_guard<std::mutex> guard(pool.mutex);
    return pool.counters;
}

void reset_peak() {
    Pool &pool = instance();
    std::lock_guard<std::mutex> guard(pool.mutex);
    pool.counters.peak_bytes = pool.counters.bytes_in_use;
}

void set_limit(int64_t bytes) {
    Pool &pool = instance();
    std::lock_guard<std::mutex> guard(pool.mutex);
    pool.counters.limit = bytes;
    if (pool.counters.bytes_cached > bytes)
        drop_cached(pool);
}

void empty() {
    Pool &pool = instance();
    std::lock_guard<std::mutex> guard(pool.mutex);
    drop_cached(pool);
}

int64_t fail_after(int64_t count) {
    Pool &pool = instance();
    std::lock_guard<std::mutex> guard(pool.mutex);
    const int64_t left = pool.until_failure;
    pool.until_failure = count;
    return left;
}

} // namespace nf::pool
