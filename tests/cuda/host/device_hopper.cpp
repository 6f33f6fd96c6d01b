#include "host/device_hopper.hpp"

#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

namespace nf::cuda::host {
namespace {

constexpr int kLanes = 32, kDepth = 16, kMostColumns = 256, kAtom = 8; // kAtom: rows after which a swizzle repeats

struct Phases {
    int expected, pending;
    int64_t bytes;
    int parity;
};

// What a warp gave to one product, and what that read from shared memory.
struct Operands {
    Product product;
    std::vector<uint16_t> a, b; // (16, kDepth) of this warp, (columns, kDepth)
    bool checked = false;
};

struct OfBlock : Carried {
    std::map<uint32_t, Phases> phases; // by address: what the 64 bits hold is NVIDIA's
    std::vector<std::deque<std::shared_ptr<Operands>>> products = decltype(products)(32); // of each warp

    void check() override {
        for (size_t warp = 0; warp < products.size(); ++warp)
            if (products[warp].size() != products[warp / 4 * 4].size())
                fail("the warps of a warpgroup began different numbers of products");
    }
};

struct UnderWay {
    std::shared_ptr<Operands> operands;
    float *sums;
    std::vector<float> before; // of the first product under way with these sums
    size_t batch;
};

struct OfThread : Carried {
    bool begun = false;
    size_t issued = 0, batch = 0;
    std::deque<UnderWay> under_way;

    void check() override {
        if (!under_way.empty())
            fail("a thread ended before its products");
    }
};

template <class T> T &carried(std::unique_ptr<Carried> &by) {
    if (!by)
        by = std::make_unique<T>();
    return static_cast<T &>(*by);
}
OfBlock &of_block() { return carried<OfBlock>(carried_by_block()); }
OfThread &of_thread() { return carried<OfThread>(carried_by_thread()); }

uint32_t swizzled_address(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

char *at(uint32_t address, size_t size) {
    if (address + size > shared_size())
        fail("shared memory: bytes from " + std::to_string(address) + " of " + std::to_string(shared_size()));
    return shared_memory() + address;
}

Phases &phases_of(const uint64_t *barrier) {
    const auto found = of_block().phases.find(shared_address(barrier));
    if (found == of_block().phases.end())
        fail("a barrier in shared memory was not initialised");
    return found->second;
}
void end_phase_if_complete(Phases &phases) {
    if (phases.pending > 0 || phases.bytes != 0)
        return;
    phases.pending = phases.expected;
    phases.parity ^= 1;
}

// Element (row, k) of a matrix in shared memory, as its descriptor says. K-major: 8 rows of 128 bytes are an atom, the
// stride leads to the next 8 rows, and the leading stride is not used. MN-major: 64 rows are 128 bytes, 8 k's an atom,
// the leading stride leads to the next 64 rows and the stride to the next 8 k's.
uint16_t element(uint64_t matrix, bool transposed, uint32_t row, uint32_t k) {
    const auto field = [&](int bit) { return uint32_t(matrix >> bit & 0x3fff) << 4; };
    const uint32_t start = field(0), leading = field(16), stride = field(32);
    if (matrix >> 62 != 1)
        fail("a product reads matrices with a 128-byte swizzle here, got kind " + std::to_string(matrix >> 62));
    if ((matrix >> 49 & 7) != (start >> 7 & 7))
        fail("the base offset of a matrix must be that of its start in an atom of 1024 bytes");
    const uint32_t offset = transposed ? row / 64 * leading + k / kAtom * stride + k % kAtom * 128 + row % 64 * 2
                                       : row / kAtom * stride + row % kAtom * 128 + k * 2;
    uint16_t bits;
    std::memcpy(&bits, at(swizzled_address(start + offset), 2), 2);
    return bits;
}

void read_operands(Operands &to, int warp) {
    const Product &product = to.product;
    to.b.clear();
    for (int n = 0; n < product.columns; ++n)
        for (int k = 0; k < kDepth; ++k)
            to.b.push_back(element(product.b_matrix, product.b_transposed, uint32_t(n), uint32_t(k)));
    if (product.a_in_registers)
        return;
    to.a.clear();
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < kDepth; ++k)
            to.a.push_back(element(product.a_matrix, product.a_transposed, uint32_t(warp % 4 * 16 + row), uint32_t(k)));
}

bool same_instruction(const Product &x, const Product &y) {
    return x.columns == y.columns && x.a_in_registers == y.a_in_registers && x.a_transposed == y.a_transposed &&
           x.b_transposed == y.b_transposed && x.add == y.add && x.a_matrix == y.a_matrix && x.b_matrix == y.b_matrix &&
           x.widen == y.widen;
}

// The fragment of a, m64nNk16: with g = lane / 4 and t = lane % 4, the pairs of columns 2t and 2t + 8 of the rows g and
// g + 8 of the warp.
void gather_a(Operands &to, const char *given) {
    to.a.assign(16 * kDepth, 0);
    for (int lane = 0; lane < kLanes; ++lane) {
        const Product product = of_lane<Product>(given, lane);
        for (int i = 0; i < 4; ++i)
            for (int e = 0; e < 2; ++e) {
                const int row = lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8 + e;
                to.a[size_t(row * kDepth + k)] = uint16_t(product.a[i] >> (16 * e));
            }
    }
}

void complete(const UnderWay &one, int warp, int lane) {
    Operands &operands = *one.operands;
    if (!operands.checked) {
        Operands now{operands.product, {}, {}, true};
        read_operands(now, warp);
        if (now.b != operands.b || (!now.product.a_in_registers && now.a != operands.a))
            fail("shared memory changed while a product read it");
        operands.checked = true;
    }
    const Product &product = operands.product;
    for (int i = 0; i < product.columns / 2; ++i) {
        const int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = product.add ? one.sums[i] : 0.0f;
        for (int k = 0; k < kDepth; ++k) // in order: the hardware has an order of its own
            sum += product.widen(operands.a[size_t(row * kDepth + k)]) *
                   product.widen(operands.b[size_t(column * kDepth + k)]);
        one.sums[i] = sum;
    }
}

void hide(float *sums, int columns) { std::fill(sums, sums + columns / 2, std::nanf("")); }

} // namespace

uint32_t shared_address(const void *x) { return uint32_t(static_cast<const char *>(x) - shared_memory()); }

void init_phases(const uint64_t *barrier, int arrivals) {
    if (shared_address(barrier) % 8 != 0 || arrivals < 1 || arrivals >= 1 << 20)
        fail("a barrier in shared memory must be aligned to 8 bytes and have 1 to 2^20 - 1 arrivals");
    of_block().phases[shared_address(barrier)] = {arrivals, arrivals, 0, 0};
}

void arrive_phase(const uint64_t *barrier, int bytes) {
    Phases &phases = phases_of(barrier);
    phases.bytes += bytes;
    if (phases.bytes >= 1 << 20)
        fail("a phase can wait for at most 2^20 - 1 bytes");
    --phases.pending;
    end_phase_if_complete(phases);
}

void wait_phase(const uint64_t *barrier, int parity) {
    const Phases &phases = phases_of(barrier);
    wait_until("wait_phase", [&] { return phases.parity != parity; });
}

void load_tile(char *tile, int64_t space, const TensorMap &from, const int64_t (&first)[4], const uint64_t *barrier) {
    const uint32_t to = shared_address(tile);
    const int64_t bytes = int64_t(from.columns) * from.rows * 2;
    if (to % 128 != 0 || from.columns * 2 != 128 || from.rows > 256 || bytes > space)
        fail("a tile must be aligned to 128 bytes, have rows of 128 bytes, at most 256, and have space for them");
    phases_of(barrier);
    std::memset(at(to, size_t(bytes)), 0xff, size_t(bytes));
    const int64_t column0 = first[0], row0 = first[1], head = first[2], batch = first[3];
    run_later([=] {
        for (int row = 0; row < from.rows; ++row)
            for (int column = 0; column < from.columns; ++column) {
                const int64_t place[4] = {column0 + column, row0 + row, head, batch};
                bool inside = true;
                for (int axis = 0; axis < 4; ++axis)
                    inside = inside && place[axis] >= 0 && place[axis] < from.sizes[axis];
                uint16_t bits = 0;
                if (inside)
                    std::memcpy(&bits,
                                from.data + place[0] * 2 + place[1] * from.strides[0] + place[2] * from.strides[1] +
                                    place[3] * from.strides[2],
                                2);
                std::memcpy(at(swizzled_address(to + uint32_t(row * 128 + column * 2)), 2), &bits, 2);
            }
        Phases &phases = phases_of(barrier);
        phases.bytes -= bytes;
        end_phase_if_complete(phases);
    });
}

void begin_products() {
    meet_warp("begin_products", nullptr, 0);
    of_thread().begun = true;
}

void issue_product(const Product &product) {
    OfThread &mine = of_thread();
    const int warp = thread() / kLanes;
    if (!mine.begun)
        fail("a product without begin_products() after the last wait");
    if (product.columns % 8 != 0 || product.columns > kMostColumns)
        fail("a product must have a multiple of 8 columns, 256 at most");
    const char *given = meet_warp("product", &product, sizeof product);
    auto &of_warp = of_block().products[size_t(warp)];
    if (of_warp.size() == mine.issued) { // the first lane to go on: nobody has run since all had given theirs
        auto operands = std::make_shared<Operands>();
        operands->product = product;
        for (int other = 0; other < kLanes; ++other)
            if (!same_instruction(product, of_lane<Product>(given, other)))
                fail("the lanes of a warp began different products");
        read_operands(*operands, warp);
        if (product.a_in_registers)
            gather_a(*operands, given);
        for (int other = warp / 4 * 4; other < warp / 4 * 4 + 4; ++other) {
            const auto &theirs = of_block().products[size_t(other)];
            if (theirs.size() > mine.issued && !same_instruction(theirs[mine.issued]->product, product))
                fail("the warps of a warpgroup began different products");
        }
        of_warp.push_back(operands);
    }
    UnderWay one{of_warp[mine.issued++], product.sums, {}, mine.batch};
    bool first = true;
    for (const UnderWay &other : mine.under_way)
        first = first && other.sums != one.sums;
    if (first)
        one.before.assign(product.sums, product.sums + product.columns / 2);
    hide(product.sums, product.columns);
    mine.under_way.push_back(std::move(one));
}

void end_products() {
    meet_warp("end_products", nullptr, 0);
    ++of_thread().batch;
}

void wait_products(int left) {
    meet_warp("wait_products", nullptr, 0);
    OfThread &mine = of_thread();
    mine.begun = false;
    std::vector<UnderWay> ended;
    while (!mine.under_way.empty() && mine.under_way.front().batch + size_t(left) < mine.batch) {
        ended.push_back(std::move(mine.under_way.front()));
        mine.under_way.pop_front();
        const UnderWay &one = ended.back();
        if (!one.before.empty())
            std::copy(one.before.begin(), one.before.end(), one.sums);
        complete(one, thread() / kLanes, thread() % kLanes);
    }
    for (const UnderWay &one : ended) // sums that a later batch goes on with
        for (UnderWay &other : mine.under_way)
            if (other.sums == one.sums) {
                const int columns = one.operands->product.columns;
                if (other.before.empty())
                    other.before.assign(one.sums, one.sums + columns / 2);
                hide(one.sums, columns);
                break;
            }
}

} // namespace nf::cuda::host
