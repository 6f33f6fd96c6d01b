// What compute capability 9.0 adds, on the host; csrc/cuda/device_hopper.hpp says what each function does. Layouts are
// those that NVIDIA's PTX ISA 9.0 describes: 9.7.15.5.1 (fragments, and matrices in shared memory), 9.7.15.5.2
// (descriptors), 5.5.6 (swizzle of TMA).
//
// What a device does beside the threads is done as late as possible, and what is under way cannot be used by mistake:
// the box of a copy is NaN until it has come, and so are the sums of a product until they are waited for; what a
// product reads must not change until then.
#pragma once
#include "host/device.hpp"

#include <math.h>

#define NF_KERNEL_ALONE(threads) NF_KERNEL(threads)

namespace nf::cuda {

struct TensorMap {
    const char *data;
    int64_t sizes[4], strides[3]; // strides in bytes
    int columns, rows;            // of a box
};

namespace host {

// One instruction of a warpgroup, as a thread gives it.
struct Product {
    float *sums;
    int columns;
    bool a_in_registers, a_transposed, b_transposed, add;
    uint32_t a[4];
    uint64_t a_matrix, b_matrix;
    float (*widen)(uint16_t);
};
void begin_products();
void issue_product(const Product &product);
void end_products();
void wait_products(int left);

uint32_t shared_address(const void *x);
void init_phases(const uint64_t *barrier, int arrivals);
void arrive_phase(const uint64_t *barrier, int bytes);
void wait_phase(const uint64_t *barrier, int parity);
void load_tile(char *tile, int64_t space, const TensorMap &from, const int64_t (&at)[4], const uint64_t *barrier);

template <class T> float widen_bits(uint16_t bits) { return widen(T{bits}); }

} // namespace host

using host::begin_products;
using host::end_products;
using host::shared_address;
template <int kLeft> void wait_products() { host::wait_products(kLeft); }
template <int N> void pin(float (&)[N][4]) {}

inline void init_phases(Shared<uint64_t> barrier, int arrivals) { host::init_phases(barrier.part(0, 1), arrivals); }
inline void publish_phases() {}
inline void arrive_phase(Shared<uint64_t> barrier) { host::arrive_phase(barrier.part(0, 1), 0); }
inline void expect_bytes(Shared<uint64_t> barrier, int bytes) { host::arrive_phase(barrier.part(0, 1), bytes); }
inline void wait_phase(Shared<uint64_t> barrier, int parity) { host::wait_phase(barrier.part(0, 1), parity); }

template <class T>
void load_tile(Shared<T> tile, const TensorMap &from, int column, int row, int head, int batch,
               Shared<uint64_t> barrier) {
    static_assert(sizeof(T) == 2);
    host::load_tile(reinterpret_cast<char *>(tile.data), tile.size * 2, from, {column, row, head, batch},
                    barrier.part(0, 1));
}

// All lanes of a warp come together: the .aligned of the instruction.
inline void group_barrier(int id, int threads) {
    warp_barrier();
    host::meet_named(id, threads, true, false);
}
inline void group_arrive(int id, int threads) {
    warp_barrier();
    host::meet_named(id, threads, false, false);
}
inline bool group_any(int id, int threads, bool condition) {
    warp_barrier();
    return host::meet_named(id, threads, true, condition);
}

template <int kCount> void give_registers() {
    static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
    warp_barrier();
}
template <int kCount> void take_registers() { give_registers<kCount>(); }

template <bool kTransposedA, bool kTransposedB, int N, class T>
void multiply_shared(float (&c)[N][4], uint64_t a, uint64_t b, bool add, T) {
    host::issue_product({c[0], 8 * N, false, kTransposedA, kTransposedB, add, {}, a, b, host::widen_bits<T>});
}
template <bool kTransposedB, int N, class T>
void multiply_registers(float (&c)[N][4], const uint32_t (&a)[4], uint64_t b, bool add, T) {
    host::issue_product(
        {c[0], 8 * N, true, false, kTransposedB, add, {a[0], a[1], a[2], a[3]}, 0, b, host::widen_bits<T>});
}

inline float fast_exp2(float x) { return exp2f(x); }

} // namespace nf::cuda
