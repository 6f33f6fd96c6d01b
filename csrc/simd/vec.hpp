// One vector type for all instruction sets: the compiler's vector extension at the width of the level, with intrinsics
// only where the extension has no word (fused multiply-add, masked memory, min and max, conversions). Everything here
// has internal linkage, because the same source is compiled once per level.
//
//   Vec<float>, Vec<double>   all lanes of one register;  + - * / and comparisons are the compiler's
//   load, store               any of float, double, f16, bf16 in memory; the 16-bit types become float lanes
//   load_n, store_n           the first n lanes only; the others are zero and no byte behind is touched
#pragma once
#include "core/dtype.hpp"

#include <stdint.h>
#include <string.h>
#if defined(NUMFORMER_X86)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized" // GCC 12's own headers, the masked forms of AVX-512
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(NUMFORMER_AARCH64)
#include <arm_neon.h>
#endif

#define NF_INLINE static inline __attribute__((always_inline))

namespace nf::NUMFORMER_LEVEL {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T> struct VecOf;
template <> struct VecOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef float loose __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    typedef int32_t ints __attribute__((vector_size(kVectorBytes)));
    typedef uint32_t bits __attribute__((vector_size(kVectorBytes)));
    typedef uint32_t loose_bits __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <> struct VecOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef double loose __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
    typedef int64_t ints __attribute__((vector_size(kVectorBytes)));
    typedef uint64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class T> using Vec = typename VecOf<T>::type;
template <class T> using IntVec = typename VecOf<T>::ints;
template <class T> constexpr int kLanes = kVectorBytes / int(sizeof(T));

// The type in which an element type is computed.
template <class T> struct AccumulatorOf {
    typedef float type;
};
template <> struct AccumulatorOf<double> {
    typedef double type;
};
template <class T> using Acc = typename AccumulatorOf<T>::type;

// Half of a register of 16-bit elements: as many as there are float lanes.
typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t LooseHalfVec __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
typedef VecOf<float>::bits BitsVec;

// ---- broadcast, fused multiply-add, min, max, square root
// -------------------------------------------------------------

NF_INLINE Vec<float> broadcast(float x) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_set1_ps(x);
#elif defined(NUMFORMER_X86)
    return (Vec<float>)_mm_set1_ps(x);
#else
    return (Vec<float>){x, x, x, x};
#endif
}
NF_INLINE Vec<double> broadcast(double x) {
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_set1_pd(x);
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_set1_pd(x);
#elif defined(NUMFORMER_X86)
    return (Vec<double>)_mm_set1_pd(x);
#else
    return (Vec<double>){x, x};
#endif
}

// a * b + c, rounded once where the level has the instruction (all but v2).
NF_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(NUMFORMER_AARCH64)
    return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
NF_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
    return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(NUMFORMER_AARCH64)
    return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

// Lane by lane a > b ? a : b and a < b ? a : b (b where either is NaN).
NF_INLINE Vec<float> max(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(NUMFORMER_X86)
    return (Vec<float>)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
}
NF_INLINE Vec<double> max(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(NUMFORMER_X86)
    return (Vec<double>)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    return a > b ? a : b;
#endif
}
NF_INLINE Vec<float> min(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(NUMFORMER_X86)
    return (Vec<float>)_mm_min_ps((__m128)a, (__m128)b);
#else
    return a < b ? a : b;
#endif
}
NF_INLINE Vec<double> min(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(NUMFORMER_X86)
    return (Vec<double>)_mm_min_pd((__m128d)a, (__m128d)b);
#else
    return a < b ? a : b;
#endif
}

NF_INLINE Vec<float> sqrt(Vec<float> a) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_sqrt_ps((__m256)a);
#elif defined(NUMFORMER_X86)
    return (Vec<float>)_mm_sqrt_ps((__m128)a);
#else
    return (Vec<float>)vsqrtq_f32((float32x4_t)a);
#endif
}
NF_INLINE Vec<double> sqrt(Vec<double> a) {
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_sqrt_pd((__m512d)a);
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_sqrt_pd((__m256d)a);
#elif defined(NUMFORMER_X86)
    return (Vec<double>)_mm_sqrt_pd((__m128d)a);
#else
    return (Vec<double>)vsqrtq_f64((float64x2_t)a);
#endif
}

// Scalars, so that the same expressions serve both.
NF_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(NUMFORMER_AARCH64)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
NF_INLINE double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(NUMFORMER_AARCH64)
    return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

// The 64-bit products of the lower halves of 64-bit lanes.
NF_INLINE VecOf<double>::bits multiply_lower_halves(VecOf<double>::bits a, VecOf<double>::bits b) {
#if defined(__AVX512F__)
    return (VecOf<double>::bits)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (VecOf<double>::bits)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(NUMFORMER_X86)
    return (VecOf<double>::bits)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// ---- reductions: halves are combined until one lane is left, a fixed order
// ----------------------------------------------

#if !defined(__AVX512F__)
typedef float FourFloats __attribute__((vector_size(16)));
typedef double TwoDoubles __attribute__((vector_size(16)));
// In registers: through memory the first load would wait for the store.
template <class T, class F> NF_INLINE T reduce_halves(Vec<T> v, F f) {
    if constexpr (sizeof(T) == 4) {
#if defined(__AVX2__)
        FourFloats a =
            f((FourFloats)_mm256_castps256_ps128((__m256)v), (FourFloats)_mm256_extractf128_ps((__m256)v, 1));
#else
        FourFloats a = v;
#endif
        a = f(a, (FourFloats){a[2], a[3], a[2], a[3]});
        return f(a[0], a[1]);
    } else {
#if defined(__AVX2__)
        TwoDoubles a =
            f((TwoDoubles)_mm256_castpd256_pd128((__m256d)v), (TwoDoubles)_mm256_extractf128_pd((__m256d)v, 1));
#else
        TwoDoubles a = v;
#endif
        return f(a[0], a[1]);
    }
}
#endif

// reduce_add<float>(v): the type is named, a Vec is the compiler's own and cannot be deduced.
template <class T> NF_INLINE T reduce_add(Vec<T> v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return _mm512_reduce_add_ps((__m512)v);
    else
        return _mm512_reduce_add_pd((__m512d)v);
#else
    return reduce_halves<T>(v, [](auto a, auto b) { return a + b; });
#endif
}
template <class T> NF_INLINE T reduce_max(Vec<T> v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return _mm512_reduce_max_ps((__m512)v);
    else
        return _mm512_reduce_max_pd((__m512d)v);
#else
    return reduce_halves<T>(v, [](auto a, auto b) { return a > b ? a : b; });
#endif
}

// Lane numbers 0, 1, 2, ...
template <class T> NF_INLINE IntVec<T> iota() {
    IntVec<T> v;
    for (int i = 0; i < kLanes<T>; ++i)
        v[i] = i;
    return v;
}

// ---- memory
// -----------------------------------------------------------------------------------------------------------

NF_INLINE Vec<float> load(const float *p) { return *reinterpret_cast<const VecOf<float>::loose *>(p); }
NF_INLINE Vec<double> load(const double *p) { return *reinterpret_cast<const VecOf<double>::loose *>(p); }
NF_INLINE void store(float *p, Vec<float> v) { *reinterpret_cast<VecOf<float>::loose *>(p) = v; }
NF_INLINE void store(double *p, Vec<double> v) { *reinterpret_cast<VecOf<double>::loose *>(p) = v; }

template <class T> NF_INLINE Vec<T> load_n_by_copy(const T *p, int n) {
    Vec<T> v = {};
    T lane[kLanes<T>] = {};
    for (int i = 0; i < n; ++i)
        lane[i] = p[i];
    memcpy(&v, lane, sizeof v);
    return v;
}
template <class T> NF_INLINE void store_n_by_copy(T *p, Vec<T> v, int n) {
    T lane[kLanes<T>];
    memcpy(lane, &v, sizeof v);
    for (int i = 0; i < n; ++i)
        p[i] = lane[i];
}

#if defined(__AVX512F__)
NF_INLINE Vec<float> load_n(const float *p, int n) {
    return (Vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
NF_INLINE Vec<double> load_n(const double *p, int n) {
    return (Vec<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
NF_INLINE void store_n(float *p, Vec<float> v, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
NF_INLINE void store_n(double *p, Vec<double> v, int n) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
NF_INLINE Vec<float> load_n(const float *p, int n) {
    return (Vec<float>)_mm256_maskload_ps(p, (__m256i)(iota<float>() < n));
}
NF_INLINE Vec<double> load_n(const double *p, int n) {
    return (Vec<double>)_mm256_maskload_pd(p, (__m256i)(iota<double>() < n));
}
NF_INLINE void store_n(float *p, Vec<float> v, int n) {
    _mm256_maskstore_ps(p, (__m256i)(iota<float>() < n), (__m256)v);
}
NF_INLINE void store_n(double *p, Vec<double> v, int n) {
    _mm256_maskstore_pd(p, (__m256i)(iota<double>() < n), (__m256d)v);
}
#else
NF_INLINE Vec<float> load_n(const float *p, int n) { return load_n_by_copy(p, n); }
NF_INLINE Vec<double> load_n(const double *p, int n) { return load_n_by_copy(p, n); }
NF_INLINE void store_n(float *p, Vec<float> v, int n) { store_n_by_copy(p, v, n); }
NF_INLINE void store_n(double *p, Vec<double> v, int n) { store_n_by_copy(p, v, n); }
#endif

// bfloat16 is the upper half of a float; to bfloat16 rounds to nearest even and keeps a NaN a NaN.
NF_INLINE Vec<float> widen(bf16, HalfVec h) { return (Vec<float>)(__builtin_convertvector(h, BitsVec) << 16); }
NF_INLINE HalfVec narrow(bf16, Vec<float> v) {
    const BitsVec u = (BitsVec)v;
    const BitsVec rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const BitsVec quiet = (u >> 16) | 0x40u;
    return __builtin_convertvector((BitsVec)(v == v ? rounded : quiet), HalfVec);
}

#if defined(__AVX512F__)
NF_INLINE Vec<float> widen(f16, HalfVec h) { return (Vec<float>)_mm512_cvtph_ps((__m256i)h); }
NF_INLINE HalfVec narrow(f16, Vec<float> v) {
    return (HalfVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__AVX2__) && defined(__F16C__)
NF_INLINE Vec<float> widen(f16, HalfVec h) { return (Vec<float>)_mm256_cvtph_ps((__m128i)h); }
NF_INLINE HalfVec narrow(f16, Vec<float> v) { return (HalfVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(NUMFORMER_AARCH64)
NF_INLINE Vec<float> widen(f16, HalfVec h) { return (Vec<float>)vcvt_f32_f16((float16x4_t)h); }
NF_INLINE HalfVec narrow(f16, Vec<float> v) { return (HalfVec)vcvt_f16_f32((float32x4_t)v); }
#else
// Without F16C: move exponent and fraction into place, then let a multiplication by a power of two do the rest,
// subnormals and rounding to nearest even included (the trick of F. Giesen, "half to float done quic", 2012).
NF_INLINE Vec<float> widen(f16, HalfVec h) {
    const BitsVec u = __builtin_convertvector(h, BitsVec);
    const BitsVec magnitude = (u & 0x7fffu) << 13;
    const Vec<float> scaled = (Vec<float>)magnitude * 0x1p112f;
    const BitsVec infinite = (BitsVec)(magnitude >= (0x7c00u << 13));
    return (Vec<float>)((BitsVec)scaled | (infinite & 0x7f800000u) | ((u & 0x8000u) << 16));
}
NF_INLINE HalfVec narrow(f16, Vec<float> v) {
    const BitsVec u = (BitsVec)v;
    const BitsVec sign = (u >> 16) & 0x8000u;
    const BitsVec magnitude = u & 0x7fffffffu;
    const BitsVec normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 aligns a number below 2^-14 so that its lowest half-precision bit is the lowest bit of the sum.
    const BitsVec subnormal = (BitsVec)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;
    BitsVec result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x477ff000u ? (result & 0u) + 0x7c00u : result; // 65520 and above round to infinity
    result = magnitude > 0x7f800000u ? (((u >> 13) & 0x3ffu) | 0x7e00u) : result;
    return __builtin_convertvector((BitsVec)(result | sign), HalfVec);
}
#endif

// The first n of a register of halves, no byte behind is touched.
NF_INLINE HalfVec load_halves(const void *p, int n) {
#if defined(__AVX512F__)
    return (HalfVec)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
    HalfVec h = {};
    uint16_t lane[kLanes<float>] = {};
    for (int i = 0; i < n; ++i)
        memcpy(lane + i, static_cast<const char *>(p) + 2 * i, 2);
    memcpy(&h, lane, sizeof h);
    return h;
#endif
}
NF_INLINE void store_halves(void *p, HalfVec h, int n) {
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)h);
#else
    uint16_t lane[kLanes<float>];
    memcpy(lane, &h, sizeof h);
    for (int i = 0; i < n; ++i)
        memcpy(static_cast<char *>(p) + 2 * i, lane + i, 2);
#endif
}

#define NF_HALF_MEMORY(type)                                                                                           \
    NF_INLINE Vec<float> load(const type *p) { return widen(type{}, *reinterpret_cast<const LooseHalfVec *>(p)); }     \
    NF_INLINE void store(type *p, Vec<float> v) { *reinterpret_cast<LooseHalfVec *>(p) = narrow(type{}, v); }          \
    NF_INLINE Vec<float> load_n(const type *p, int n) { return widen(type{}, load_halves(p, n)); }                     \
    NF_INLINE void store_n(type *p, Vec<float> v, int n) { store_halves(p, narrow(type{}, v), n); }
NF_HALF_MEMORY(bf16)
NF_HALF_MEMORY(f16)
#undef NF_HALF_MEMORY

// As many bytes as there are float lanes, as floats.
NF_INLINE Vec<float> load_int8(const int8_t *p) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#elif defined(NUMFORMER_X86)
    int32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return (Vec<float>)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes)));
#else
    return (Vec<float>){float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}

// ---- products of pairs
// -----------------------------------------------------------------------------------------------------------

#if defined(__AVX512BF16__)
// Two elements that follow each other along the depth of a product: what vdpbf16ps multiplies. A register of pairs is
// moved as one of floats.
struct bf16_pair {
    bf16 first, second;
};
template <> struct VecOf<bf16_pair> : VecOf<float> {};

NF_INLINE Vec<float> broadcast(bf16_pair x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (Vec<float>)_mm512_set1_epi32(bits);
}
NF_INLINE Vec<float> load(const bf16_pair *p) { return load(reinterpret_cast<const float *>(p)); }
NF_INLINE void store(bf16_pair *p, Vec<float> v) { store(reinterpret_cast<float *>(p), v); }

// To bfloat16 in one instruction, which takes subnormal numbers for 0, as vdpbf16ps does.
NF_INLINE void store_flushed(bf16 *p, Vec<float> v) {
    *reinterpret_cast<LooseHalfVec *>(p) = (HalfVec)_mm512_cvtneps_pbh((__m512)v);
}

// Pairs of the elements of two registers, rounded like that.
NF_INLINE Vec<float> to_pairs(Vec<float> first, Vec<float> second) {
    const BitsVec low = __builtin_convertvector((HalfVec)_mm512_cvtneps_pbh((__m512)first), BitsVec),
                  high = __builtin_convertvector((HalfVec)_mm512_cvtneps_pbh((__m512)second), BitsVec);
    return (Vec<float>)(low | high << 16);
}

// n <= 2 * lanes elements from p on as pairs, zeros behind them.
NF_INLINE Vec<float> load_pairs(const bf16 *p, int n) {
    if (n == 2 * kLanes<float>)
        return (Vec<float>)_mm512_loadu_si512(p); // a float's alignment is not an element's
    return (Vec<float>)_mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), p);
}
#endif

// Operands of type E: how many elements of the depth one holds.
template <class E> struct ElementsOf {
    static constexpr int count = 1;
};
#if defined(__AVX512BF16__)
template <> struct ElementsOf<bf16_pair> {
    static constexpr int count = 2;
};
#endif
template <class E> constexpr int kElements = ElementsOf<E>::count;

// c + a * b, the products of a pair added to c one after the other.
template <class E> NF_INLINE Vec<Acc<E>> multiply_add(Vec<E> a, Vec<E> b, Vec<Acc<E>> c) {
#if defined(__AVX512BF16__)
    if constexpr (kElements<E> == 2)
        return (Vec<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
    else
#endif
        return fma(a, b, c);
}

// One element, by way of a vector so that conversions agree bit for bit with the vector ones.
NF_INLINE float load_one(const float *p) { return *p; }
NF_INLINE double load_one(const double *p) { return *p; }
NF_INLINE float load_one(const bf16 *p) {
    const uint32_t u = uint32_t(p->bits) << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}
NF_INLINE float load_one(const f16 *p) { return load_n(p, 1)[0]; }
NF_INLINE void store_one(float *p, float x) { *p = x; }
NF_INLINE void store_one(double *p, double x) { *p = x; }
NF_INLINE void store_one(bf16 *p, float x) { store_n(p, broadcast(x), 1); }
NF_INLINE void store_one(f16 *p, float x) { store_n(p, broadcast(x), 1); }

// Call f(offset, lanes) for each full vector of `count` elements, then once for the rest.
template <class A, class F> NF_INLINE void for_each_vector(int64_t count, F f) {
    int64_t i = 0;
    for (; i + kLanes<A> <= count; i += kLanes<A>)
        f(i, kLanes<A>);
    if (i < count)
        f(i, int(count - i));
}
// load / store of a whole or a partial vector: `n` is a constant kLanes in the loop above, so the test folds away.
template <class T> NF_INLINE Vec<Acc<T>> load_some(const T *p, int n) {
    return n == kLanes<Acc<T>> ? load(p) : load_n(p, n);
}
template <class T> NF_INLINE void store_some(T *p, Vec<Acc<T>> v, int n) {
    if (n == kLanes<Acc<T>>)
        store(p, v);
    else
        store_n(p, v, n);
}

} // namespace nf::NUMFORMER_LEVEL
