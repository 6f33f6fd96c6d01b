// The device as kernels see it: indices, shared memory, barriers, shuffles, and products of matrix fragments. There are
// two implementations: CUDA's, here, and one for the host (tests/cuda/host/device.hpp), where the threads of a block
// are fibres and wrong use is an error. Blocks have one axis, of a multiple of 32 threads; grids have one axis, too.
#pragma once
#include "core/dtype.hpp"

#include <math.h>
#include <stdint.h>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define NF_DEVICE __device__ __forceinline__
#define NF_KERNEL(threads) static __global__ void __launch_bounds__(threads)
// ... of which so many blocks are to fit on a multiprocessor: registers are kept to that.
#define NF_KERNEL_FOR(threads, blocks) static __global__ void __launch_bounds__(threads, blocks)
#define NF_ARGS const __grid_constant__ // read in place: an index into it makes no copy
#define NF_UNROLL _Pragma("unroll")
#define NF_NO_UNROLL _Pragma("unroll 1")
#define NF_HOST_DEVICE __host__ __device__ __forceinline__

namespace nf::cuda {

NF_DEVICE int thread() { return int(threadIdx.x); }
NF_DEVICE int threads() { return int(blockDim.x); }
NF_DEVICE int64_t block() { return int64_t(blockIdx.x); }
NF_DEVICE int64_t blocks() { return int64_t(gridDim.x); }

// All threads of the block meet; what they wrote before is seen after. `any`: is the condition true in one of them?
NF_DEVICE void barrier() { __syncthreads(); }
NF_DEVICE bool barrier_any(bool condition) { return __syncthreads_or(condition); }

// All 32 lanes of a warp take part.
NF_DEVICE void warp_barrier() { __syncwarp(); }
template <class V> NF_DEVICE V shuffle(V value, int from) { return __shfl_sync(0xffffffffu, value, from); }
template <class V> NF_DEVICE V shuffle_xor(V value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
NF_DEVICE bool warp_any(bool condition) { return __any_sync(0xffffffffu, condition); }

// Part of the block's shared memory.
template <class T> struct Shared {
    T *data;
    NF_DEVICE T &operator[](int i) const { return data[i]; }
    NF_DEVICE Shared from(int first) const { return {data + first}; }
    NF_DEVICE T *part(int first, int) const { return data + first; } // so many elements, to be copied at once
};

// Hands out the block's shared memory from its begin, in pieces aligned to 16 bytes (shared_bytes each).
class SharedMemory {
  public:
    NF_DEVICE SharedMemory() {
        extern __shared__ __align__(1024) char all[];
        next_ = all;
    }
    template <class T> NF_DEVICE Shared<T> take(int count) {
        T *data = reinterpret_cast<T *>(next_);
        next_ += (count * int(sizeof(T)) + 15) / 16 * 16;
        return {data};
    }

  private:
    char *next_;
};

NF_DEVICE float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
NF_DEVICE float widen(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
NF_DEVICE void narrow(float x, f16 &y) { y.bits = __half_as_ushort(__float2half_rn(x)); }
NF_DEVICE void narrow(float x, bf16 &y) { y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// Two values as the halves of a register, the first one in the lower half: one instruction.
template <class T> NF_DEVICE uint32_t pack_pair(float first, float second) {
    uint32_t pair;
    if constexpr (std::is_same<T, bf16>::value)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// ldmatrix: four 8 x 8 matrices of 16-bit elements. Lanes 8i ... 8i + 7 name the rows of matrix i, which are aligned to
// 16 bytes; lane l gets elements 2 (l % 4) and the next of row l / 4, or of column l / 4 where `kTransposed`.
template <bool kTransposed, class T> NF_DEVICE void load_matrices(Shared<T> row, uint32_t x[4]) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row.data));
    if constexpr (kTransposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(address)
                     : "memory");
}

// c (16 x 8) += a (16 x 16) b (16 x 8), in fragments: with g = lane / 4 and t = lane % 4, a lane holds of c the
// elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1); of a pairs at (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8,
// 2t + 8); of b pairs down the column g at 2t and 2t + 8. (PTX ISA, "Matrix fragments for mma.m16n8k16".)
NF_DEVICE void multiply_add(float c[4], const uint32_t a[4], const uint32_t b[2], f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
                 "%1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
NF_DEVICE void multiply_add(float c[4], const uint32_t a[4], const uint32_t b[2], bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c (16 x 8) += a (16 x 8) b (8 x 8), of floats that are rounded to TF32, 10 bits of mantissa: a lane holds of a (g,
// t), (g + 8, t), (g, t + 4), (g + 8, t + 4), of b (t, g), (t + 4, g), of c as above. (PTX ISA, "Matrix fragments for
// mma.m16n8k8".)
NF_DEVICE uint32_t to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}
NF_DEVICE void multiply_add_tf32(float c[4], const float a[4], const float b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(to_tf32(a[0])), "r"(to_tf32(a[1])), "r"(to_tf32(a[2])), "r"(to_tf32(a[3])), "r"(to_tf32(b[0])),
                   "r"(to_tf32(b[1])));
}

} // namespace nf::cuda
#else
#include "host/device.hpp"
#endif

namespace nf::cuda {

constexpr int kWarp = 32;
NF_DEVICE int lane() { return thread() % kWarp; }
NF_DEVICE int warp() { return thread() / kWarp; }

// What `take<T>(count)` takes.
template <class T> constexpr int64_t shared_bytes(int64_t count) { return (count * int64_t(sizeof(T)) + 15) / 16 * 16; }

// What a T is computed in: float for the 16-bit types, else itself.
template <class T> struct AccOf {
    typedef T type;
};
template <> struct AccOf<f16> {
    typedef float type;
};
template <> struct AccOf<bf16> {
    typedef float type;
};
template <class T> using Acc = typename AccOf<T>::type;

NF_DEVICE float widen(float x) { return x; }
NF_DEVICE double widen(double x) { return x; }
NF_DEVICE void narrow(float x, float &y) { y = x; }
NF_DEVICE void narrow(double x, double &y) { y = x; }
NF_DEVICE void narrow(float x, double &y) { y = x; }
NF_DEVICE void narrow(double x, float &y) { y = float(x); }
NF_DEVICE void narrow(double x, f16 &y) { narrow(float(x), y); }
NF_DEVICE void narrow(double x, bf16 &y) { narrow(float(x), y); }

template <class T> NF_DEVICE Acc<T> load(const T *x, int64_t i) { return widen(x[i]); }
template <class T, class A> NF_DEVICE void store(T *x, int64_t i, A value) { narrow(value, x[i]); }

NF_DEVICE float exp_of(float x) { return expf(x); }
NF_DEVICE double exp_of(double x) { return exp(x); }
NF_DEVICE float exp2_of(float x) { return exp2f(x); }
NF_DEVICE double exp2_of(double x) { return exp2(x); }
NF_DEVICE float log_of(float x) { return logf(x); }
NF_DEVICE double log_of(double x) { return log(x); }
NF_DEVICE float tanh_of(float x) { return tanhf(x); }
NF_DEVICE double tanh_of(double x) { return tanh(x); }
NF_DEVICE float erfc_of(float x) { return erfcf(x); }
NF_DEVICE double erfc_of(double x) { return erfc(x); }
NF_DEVICE float sqrt_of(float x) { return sqrtf(x); }
NF_DEVICE double sqrt_of(double x) { return sqrt(x); }
// A NaN is not the larger one.
NF_DEVICE float larger_of(float a, float b) { return fmaxf(a, b); }
NF_DEVICE double larger_of(double a, double b) { return fmax(a, b); }
NF_DEVICE int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }
NF_DEVICE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }
NF_DEVICE bool finite(float x) { return x - x == 0; }
NF_DEVICE bool finite(double x) { return x - x == 0; }
NF_DEVICE bool finite(f16 x) { return (x.bits & 0x7c00) != 0x7c00; }
NF_DEVICE bool finite(bf16 x) { return (x.bits & 0x7f80) != 0x7f80; }
template <class A> NF_DEVICE A infinity() { return A(HUGE_VALF); }
template <class A> NF_DEVICE A not_a_number() { return A(nanf("")); }

constexpr double kLog2e = 1.4426950408889634074;

constexpr NF_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// combine(combine(a, b), ...) of a value of each lane, in every lane.
template <class A, class Combine> NF_DEVICE A warp_reduce(A value, Combine combine) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2)
        value = combine(value, shuffle_xor(value, mask));
    return value;
}
// ... of each thread of the block; `scratch` has a place for each warp.
template <class A, class Combine> NF_DEVICE A block_reduce(A value, Shared<A> scratch, Combine combine) {
    value = warp_reduce(value, combine);
    if (lane() == 0)
        scratch[warp()] = value;
    barrier();
    A all = scratch[0];
    for (int i = 1; i < threads() / kWarp; ++i)
        all = combine(all, scratch[i]);
    barrier(); // the scratch may be used again
    return all;
}
struct Sum {
    template <class A> NF_DEVICE A operator()(A a, A b) const { return a + b; }
};
struct Largest {
    template <class A> NF_DEVICE A operator()(A a, A b) const { return larger_of(a, b); }
};
template <class A> NF_DEVICE A warp_sum(A value) { return warp_reduce(value, Sum()); }
template <class A> NF_DEVICE A warp_max(A value) { return warp_reduce(value, Largest()); }
template <class A> NF_DEVICE A block_sum(A value, Shared<A> scratch) { return block_reduce(value, scratch, Sum()); }
template <class A> NF_DEVICE A block_max(A value, Shared<A> scratch) { return block_reduce(value, scratch, Largest()); }

} // namespace nf::cuda
