// Elementary functions on vectors. Errors are stated in units in the last place (ulp) of the result.
#pragma once
#include "simd/vec.hpp"

namespace nf::NUMFORMER_LEVEL {

// p[0] + x (p[1] + x (p[2] + ...)), Horner's scheme.
template <class V, class T, int N> NF_INLINE V polynomial(V x, const T (&p)[N]) {
    V y = broadcast(p[N - 1]);
    for (int i = N - 2; i >= 0; --i)
        y = fma(y, x, broadcast(p[i]));
    return y;
}

// v * 2^n for whole n (given as floating point) with |n| below twice the exponent range, in two exact steps.
NF_INLINE Vec<float> scale_by_power(Vec<float> v, Vec<float> n) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
    const IntVec<float> k = __builtin_convertvector(n, IntVec<float>);
    const IntVec<float> half = k >> 1;
    return v * (Vec<float>)((half + 127) << 23) * (Vec<float>)((k - half + 127) << 23);
#endif
}
NF_INLINE Vec<double> scale_by_power(Vec<double> v, Vec<double> n) {
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_scalef_pd((__m512d)v, (__m512d)n);
#else
    // Adding 1.5 * 2^52 leaves the whole number in the low bits of the fraction: no 64-bit conversion is needed.
    const double magic = 6755399441055744.0;
    const IntVec<double> k = ((IntVec<double>)(n + magic) << 32) >> 32;
    const IntVec<double> half = k >> 1;
    return v * (Vec<double>)((half + 1023) << 52) * (Vec<double>)((k - half + 1023) << 52);
#endif
}

// 2^f for f in [-1/2, 1/2], with value 1 at 0: (2^f - 1) / f interpolated at Chebyshev nodes in 60 digits. The relative error is
// 5.1e-9 (0.09 ulp) for float with degree 6 and 1.2e-19 for double with degree 12.
NF_INLINE Vec<float> exp2_fraction(Vec<float> f) {
    static constexpr float p[] = {1.0f,           0.69314718802622f,   0.24022650760568f, 0.055503571142190f,
                                  0.00961808255f, 0.00133908633646f, 0.00015453162945f};
    return polynomial(f, p);
}
NF_INLINE Vec<double> exp2_fraction(Vec<double> f) {
    static constexpr double p[] = {1.0,
                                   0.69314718055994530925,
                                   0.24022650695910071233,
                                   0.055504108664821627039,
                                   0.0096181291076284794928,
                                   0.0013333558146406470697,
                                   0.00015403530393370733411,
                                   0.000015252733841556772589,
                                   1.321548680870556279e-6,
                                   1.0178057087733941105e-7,
                                   7.0548973041554992774e-9,
                                   4.455817908336064493e-10,
                                   2.5729324177362304214e-11};
    return polynomial(f, p);
}

NF_INLINE Vec<float> round_to_whole(Vec<float> v) { return (v + 12582912.0f) - 12582912.0f; }                 // |v| < 2^22
NF_INLINE Vec<double> round_to_whole(Vec<double> v) { return (v + 6755399441055744.0) - 6755399441055744.0; } // |v| < 2^51

// Beyond these exponents of two a result is 0 or inf anyway; clamping keeps the whole part within an int.
template <class T> struct ExpConstants;
template <> struct ExpConstants<float> {
    static constexpr float low = -152.0f, high = 129.0f, log2e = 1.44269504f;
    static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860682e-6f; // the high part has 15 bits
};
template <> struct ExpConstants<double> {
    static constexpr double low = -1077.0, high = 1025.0, log2e = 1.4426950408889634074;
    static constexpr double ln2_high = 0.69314718036912381649, ln2_low = 1.9082149292705877e-10; // 32 bits
};

// 2^x: -inf gives 0, +inf gives inf, NaN stays NaN. At most 1 ulp.
template <class T> NF_INLINE Vec<T> exp2_of(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> clamped = min(broadcast(C::high), max(broadcast(C::low), x)); // the order keeps a NaN
    const Vec<T> whole = round_to_whole(clamped);
    return scale_by_power(exp2_fraction(clamped - whole), whole);
}

// e^x = 2^n e^r with r = x - n ln 2 subtracted in two parts (Cody and Waite), |r| <= ln(2) / 2. At most 2 ulp.
template <class T> NF_INLINE Vec<T> exp_of(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> exponent = x * C::log2e;
    const Vec<T> clamped = min(broadcast(C::high), max(broadcast(C::low), exponent));
    const Vec<T> whole = round_to_whole(clamped);
    const Vec<T> inside = fma(whole, broadcast(-C::ln2_low), fma(whole, broadcast(-C::ln2_high), x));
    // Where the exponent was clamped x may be infinite: any remainder will do, but not inf - inf.
    const Vec<T> remainder = clamped == exponent ? inside * C::log2e : clamped - whole;
    return scale_by_power(exp2_fraction(remainder), whole);
}

NF_INLINE Vec<float> exp2(Vec<float> x) { return exp2_of<float>(x); }
NF_INLINE Vec<double> exp2(Vec<double> x) { return exp2_of<double>(x); }
NF_INLINE Vec<float> exp(Vec<float> x) { return exp_of<float>(x); }
NF_INLINE Vec<double> exp(Vec<double> x) { return exp_of<double>(x); }

} // namespace nf::NUMFORMER_LEVEL
