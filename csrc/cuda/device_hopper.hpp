// What compute capability 9.0 adds to the device as kernels see it (device.hpp): barriers in shared memory, tiles that
// the copy engine (TMA) brings, products of a warpgroup (wgmma), barriers of some warps, and registers that warps give
// each other. The facts are those of NVIDIA's PTX ISA 9.0, chapters 9.7.13 and 9.7.15. There are two implementations
// here, too: the device's, and one for the host (tests/cuda/host/device_hopper.hpp).
//
// Only code for sm_90a has these instructions: a kernel's body stands between #ifdef NF_HOPPER and #endif.
#pragma once
#include "cuda/device.hpp"

#ifdef __CUDACC__
#include <cuda.h>

namespace nf::cuda {

// One block a multiprocessor: then the compiler knows how many registers a thread begins with.
#define NF_KERNEL_ALONE(threads) static __global__ void __launch_bounds__(threads, 1)

// Says where a matrix lies in memory, for TMA; tensor_map.hpp makes it.
typedef CUtensorMap TensorMap;

} // namespace nf::cuda

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define NF_HOPPER 1

namespace nf::cuda {

NF_DEVICE uint32_t shared_address(const void *x) { return uint32_t(__cvta_generic_to_shared(x)); }

// ---- barriers in shared memory

// A phase of an mbarrier ends once so many arrivals have been made and all bytes that were announced have come. Phases
// are told by their parity: `wait_phase(b, 0)` returns once the first one, or the third, ... has ended and the next one
// has not; `wait_phase(b, 1)` returns at once on a new barrier.
NF_DEVICE void init_phases(Shared<uint64_t> barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier.data)), "r"(arrivals)
                 : "memory");
}
// Between init_phases and a barrier() after which others use it, the copy engine among them.
NF_DEVICE void publish_phases() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
NF_DEVICE void arrive_phase(Shared<uint64_t> barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier.data)) : "memory");
}
// Arrives, and announces bytes.
NF_DEVICE void expect_bytes(Shared<uint64_t> barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier.data)),
                 "r"(bytes)
                 : "memory");
}
NF_DEVICE void wait_phase(Shared<uint64_t> barrier, int parity) {
    asm volatile("{\n"
                 ".reg .pred ended;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                 "@ended bra done;\n"
                 "bra again;\n"
                 "done:\n"
                 "}" ::"r"(shared_address(barrier.data)),
                 "r"(parity)
                 : "memory");
}

// ---- tiles

// Starts the copy of a box that begins at (column, row, head, batch) to `tile`, and tells the barrier its bytes. What
// lies outside the matrix becomes zeros. One thread calls it.
template <class T>
NF_DEVICE void load_tile(Shared<T> tile, const TensorMap &from, int column, int row, int head, int batch,
                         Shared<uint64_t> barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, "
                 "%4, %5}], [%6];" ::"r"(shared_address(tile.data)),
                 "l"(&from), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(shared_address(barrier.data))
                 : "memory");
}

// ---- barriers of some warps, 1 <= id <= 15

NF_DEVICE void group_barrier(int id, int threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
NF_DEVICE void group_arrive(int id, int threads) { // is counted, does not wait
    asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
NF_DEVICE bool group_any(int id, int threads, bool condition) {
    int any;
    asm volatile("{\n"
                 ".reg .pred mine, one;\n"
                 "setp.ne.b32 mine, %3, 0;\n"
                 "barrier.cta.red.or.pred.aligned one, %1, %2, mine;\n"
                 "selp.b32 %0, 1, 0, one;\n"
                 "}"
                 : "=r"(any)
                 : "r"(id), "r"(threads), "r"(int(condition))
                 : "memory");
    return any != 0;
}

// ---- registers: each thread of a warpgroup keeps kCount, and the others may have the rest, or asks for as many

template <int kCount> NF_DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount> NF_DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- products of a warpgroup

// Products run beside the code that follows. Their sums, and what they read, must not be touched until they are waited
// for. begin_products() stands before the first one and again wherever registers were touched; end_products() makes one
// batch of those since; wait_products<n>() returns once all batches but the last n have ended.
NF_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
NF_DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft> NF_DEVICE void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// The compiler must not move what touches these registers across this place.
template <int N> NF_DEVICE void pin(float (&c)[N][4]) {
    NF_UNROLL
    for (int i = 0; i < 4 * N; ++i)
        asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}

#define NF_SUMS(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define NF_SUMS_64 NF_SUMS(0), NF_SUMS(1), NF_SUMS(2), NF_SUMS(3), NF_SUMS(4), NF_SUMS(5), NF_SUMS(6), NF_SUMS(7)
#define NF_SUMS_128                                                                                                    \
    NF_SUMS_64, NF_SUMS(8), NF_SUMS(9), NF_SUMS(10), NF_SUMS(11), NF_SUMS(12), NF_SUMS(13), NF_SUMS(14), NF_SUMS(15)
#define NF_NAMES_64                                                                                                    \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31}"
#define NF_NAMES_128                                                                                                   \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "   \
    "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
// The first operands are the sums; A, B and what follows are the names of the others.
#define NF_WGMMA(N, TYPE, ADD, A, B, REST)                                                                             \
    "{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\n"                                                               \
    "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " NF_NAMES_##N ", " A ", " B                     \
                                                                                     ", add, 1, 1, " REST ";\n}"

// c (64 x 8N) (+)= a (64 x 16) b (16 x 8N), both in shared memory. `Transposed`: the matrix lies with its rows (of a;
// its columns, of b) running fastest, and not the 16.
template <bool kTransposedA, bool kTransposedB, int N, class T>
NF_DEVICE void multiply_shared(float (&c)[N][4], uint64_t a, uint64_t b, bool add, T) {
    static_assert(N == 8 || N == 16);
#define NF_ASM(COLUMNS, TYPE, ADD, A, B, TA, TB)                                                                       \
    asm volatile(NF_WGMMA(COLUMNS, TYPE, ADD, A, B, TA ", " TB)                                                        \
                 : NF_SUMS_##COLUMNS                                                                                   \
                 : "l"(a), "l"(b), "r"(int(add)), "n"(int(kTransposedA)), "n"(int(kTransposedB))                       \
                 : "memory")
    if constexpr (N == 8 && std::is_same<T, bf16>::value)
        NF_ASM(64, "bf16", "%34", "%32", "%33", "%35", "%36");
    else if constexpr (N == 8)
        NF_ASM(64, "f16", "%34", "%32", "%33", "%35", "%36");
    else if constexpr (std::is_same<T, bf16>::value)
        NF_ASM(128, "bf16", "%66", "%64", "%65", "%67", "%68");
    else
        NF_ASM(128, "f16", "%66", "%64", "%65", "%67", "%68");
#undef NF_ASM
}

// ... with a in registers, 16 rows a warp: the fragment of multiply_add.
template <bool kTransposedB, int N, class T>
NF_DEVICE void multiply_registers(float (&c)[N][4], const uint32_t (&a)[4], uint64_t b, bool add, T) {
    static_assert(N == 8 || N == 16);
#define NF_ASM(COLUMNS, TYPE, ADD, A, B, TB)                                                                           \
    asm volatile(NF_WGMMA(COLUMNS, TYPE, ADD, A, B, TB)                                                                \
                 : NF_SUMS_##COLUMNS                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(kTransposedB))           \
                 : "memory")
    if constexpr (N == 8 && std::is_same<T, bf16>::value)
        NF_ASM(64, "bf16", "%37", "{%32, %33, %34, %35}", "%36", "%38");
    else if constexpr (N == 8)
        NF_ASM(64, "f16", "%37", "{%32, %33, %34, %35}", "%36", "%38");
    else if constexpr (std::is_same<T, bf16>::value)
        NF_ASM(128, "bf16", "%69", "{%64, %65, %66, %67}", "%68", "%70");
    else
        NF_ASM(128, "f16", "%69", "{%64, %65, %66, %67}", "%68", "%70");
#undef NF_ASM
}

// Two units in the last place; what is smaller than a normal number becomes 0.
NF_DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

} // namespace nf::cuda
#endif
#else
#include "host/device_hopper.hpp"
#define NF_HOPPER 1
#endif

namespace nf::cuda {

constexpr int kGroup = 128; // threads of a warpgroup
constexpr int kPanel = 64;  // columns of a panel

#ifdef NF_HOPPER
// ---- how a tile of 16-bit elements lies in shared memory
//
// In panels of kPanel columns, a row of a panel in 128 bytes. A row is 8 units of 16 bytes, and unit u of row r lies at
// place u ^ (r % 8): then neither 8 rows of a unit nor the units of a row meet in a bank. TMA writes it so and wgmma
// reads it so ("128-byte swizzle"), where a panel begins at a multiple of 1024 bytes.
NF_DEVICE int swizzled(int row, int column, int rows) {
    return (column / kPanel * rows + row) * kPanel + ((column % kPanel) ^ (row % 8 * 8));
}

// The descriptor of a matrix for wgmma: start, two strides in bytes, and the kind of swizzle.
template <class T> NF_DEVICE uint64_t describe_matrix(Shared<T> start, int leading, int stride) {
    auto field = [](uint32_t bytes) { return uint64_t((bytes & 0x3ffff) >> 4); };
    return field(shared_address(start.data)) | field(uint32_t(leading)) << 16 | field(uint32_t(stride)) << 32 |
           uint64_t(1) << 62;
}
// Of a tile of `rows` rows: the 16 columns from `column` on, of the rows from `row` on (a multiple of 8). They are the
// 16 of the product. From 8 rows to the next 8 it is 1024 bytes; the leading stride is not looked at.
template <class T> NF_DEVICE uint64_t columns_of_tile(Shared<T> tile, int rows, int row, int column) {
    return describe_matrix(tile.from((column / kPanel * rows + row) * kPanel + column % kPanel), 16, 1024);
}
// ... all columns of the 16 rows from `row` on, which are the 16 of the product: transposed. From a panel to the next
// it is the leading stride, from 8 rows to the next 8 the other one.
template <class T> NF_DEVICE uint64_t rows_of_tile(Shared<T> tile, int rows, int row) {
    return describe_matrix(tile.from(row * kPanel), rows * kPanel * 2, 1024);
}
#endif

} // namespace nf::cuda
