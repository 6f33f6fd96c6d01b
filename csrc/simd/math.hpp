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

// 2^f for f in [-1/2, 1/2], with value 1 at 0: (2^f - 1) / f interpolated at Chebyshev nodes in 60 digits. The relative
// error is 9e-9 (0.15 ulp) for float with degree 6 and 2e-17 for double with degree 12 (tools/fit_polynomials.py).
// exp2m1_fraction is 2^f - 1, without cancellation near 0.
NF_INLINE Vec<float> exp2_slope(Vec<float> f) {
    static constexpr float p[] = {0.69314718802622f, 0.24022650760568f, 0.055503571142190f,
                                  0.00961808255f,    0.00133908633646f, 0.00015453162945f};
    return polynomial(f, p);
}
NF_INLINE Vec<double> exp2_slope(Vec<double> f) {
    static constexpr double p[] = {0.69314718055994530925,     0.24022650695910071233,   0.055504108664821627039,
                                   0.0096181291076284794928,   0.0013333558146406470697, 0.00015403530393370733411,
                                   0.000015252733841556772589, 1.321548680870556279e-6,  1.0178057087733941105e-7,
                                   7.0548973041554992774e-9,   4.455817908336064493e-10, 2.5729324177362304214e-11};
    return polynomial(f, p);
}
NF_INLINE Vec<float> exp2_fraction(Vec<float> f) { return fma(exp2_slope(f), f, broadcast(1.0f)); }
NF_INLINE Vec<double> exp2_fraction(Vec<double> f) { return fma(exp2_slope(f), f, broadcast(1.0)); }
// The same in float with degree 5 and an error of 1.25e-7, 1 ulp: probabilities that are multiplied and summed.
NF_INLINE Vec<float> exp2_fraction_of_score(Vec<float> f) {
    static constexpr float p[] = {1, 0.69314718056f, 0.24022234733f, 0.05550369705f, 0.00967186983f, 0.00133867453f};
    return polynomial(f, p);
}
NF_INLINE Vec<double> exp2_fraction_of_score(Vec<double> f) { return exp2_fraction(f); }
template <class V> NF_INLINE V exp2m1_fraction(V f) { return exp2_slope(f) * f; }

// Added to x, 1.5 * 2^(bits of the fraction) leaves x rounded to a whole number in the low bits, and taken away again
// gives that number: |x| < 2^22 and 2^51.
template <class T> constexpr T kToWhole = sizeof(T) == 4 ? T(12582912) : T(6755399441055744);
template <class T> constexpr int kFractionBits = sizeof(T) == 4 ? 23 : 52;
template <class T> constexpr int kExponentBias = sizeof(T) == 4 ? 127 : 1023;
NF_INLINE Vec<float> round_to_whole(Vec<float> v) { return (v + kToWhole<float>)-kToWhole<float>; }
NF_INLINE Vec<double> round_to_whole(Vec<double> v) { return (v + kToWhole<double>)-kToWhole<double>; }

// 2^n from a sum with kToWhole + kExponentBias, whose low bits are those of the exponent. -bias <= n <= bias, and
// n = -bias gives 0.
template <class T> NF_INLINE Vec<T> power_in_low_bits(Vec<T> sum) {
    return (Vec<T>)((typename VecOf<T>::bits)sum << kFractionBits<T>);
}

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

// e^x = 2^n e^r with r = x - n ln 2, n ln 2 subtracted in two parts (Cody and Waite), |r| <= ln(2) / 2. At most 2 ulp.
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

template <class T> NF_INLINE Vec<T> absolute(Vec<T> x) {
    typedef typename VecOf<T>::bits Bits;
    return (Vec<T>)((Bits)x & (~Bits{} >> 1));
}

// 1 / (1 + e^-x). Written with e^-|x|, which neither overflows nor loses the digits of a result near 0. At most 3 ulp.
template <class T> NF_INLINE Vec<T> sigmoid_of(Vec<T> x) {
    const Vec<T> e = exp(-absolute<T>(x));
    return (x < T(0) ? e : broadcast(T(1))) / (e + T(1));
}

// tanh x = (e^2x - 1) / (e^2x + 1), where e^2x - 1 = 2^n (2^f - 1) + (2^n - 1): nothing cancels near 0. At most 4 ulp.
template <class T> NF_INLINE Vec<T> tanh_of(Vec<T> x) {
    typedef typename VecOf<T>::bits Bits;
    const Vec<T> end = broadcast(T(sizeof(T) == 4 ? 40 : 80));                   // from here on the result is 1
    const Vec<T> exponent = min(end, absolute<T>(x) * T(2.8853900817779268147)); // the order keeps a NaN
    const Vec<T> whole = round_to_whole(exponent);
    const Vec<T> power = scale_by_power(broadcast(T(1)), whole);
    const Vec<T> less_one = fma(power, exp2m1_fraction(exponent - whole), power - T(1));
    const Vec<T> magnitude = less_one / (less_one + T(2));
    return (Vec<T>)((Bits)magnitude | ((Bits)x & ~(~Bits{} >> 1)));
}

template <class T> struct NormalConstants;
template <> struct NormalConstants<float> {
    // From here on the density is below half of the smallest number; tiny = 2^-raised; the bits of a float that a
    // half-length factor keeps.
    static constexpr float end = 15.0f, tiny = 0x1p-40f;
    static constexpr int raised = 40;
    static constexpr uint32_t upper_half = 0xfffff000u;
    // Phi(-a) = e^(-a^2 / 2) t P(t - 1/2), t = 1 / (1 + p a): relative error 3.0e-8 (tools/fit_polynomials.py).
    static constexpr float p = 0.3f;
    static constexpr float tail[] = {0.2219706134f,   0.3291589798f,   0.3461987526f,  0.2220820552f,  0.02906066571f,
                                     -0.07754212451f, -0.03652679186f, 0.03591094015f, 0.01997109974f, -0.02098466936f};
};
template <> struct NormalConstants<double> {
    static constexpr double end = 40.0, tiny = 0x1p-140;
    static constexpr int raised = 140;
    static constexpr uint64_t upper_half = 0xfffffffff8000000u;
    static constexpr double p = 0.25; // relative error 1.9e-16
    static constexpr double tail[] = {
        0.1888212826039378696,    0.30394832098594588212,   0.38713740074221933516,     0.37304371591938678453,
        0.24158629956270661743,   0.060321511725000134697,  -0.055675077788864952988,   -0.052186190159378834068,
        0.0085340319861493940437, 0.029580137491196293114,  -0.00048840791191676685536, -0.017993838063747995457,
        0.0007320891725289882515, 0.012122139005243482364,  -0.0025599619053034640233,  -0.0083564244111920861042,
        0.0043178902422625409636, 0.0050665777368995983345, -0.0050034854090775501766,  -0.0019454217516156640438,
        0.0036638629969135722391, 5.3230736121508290816e-6, -0.0010475928719220566655};
};

// e^(-a^2 / 2) / tiny for 0 <= a <= end, which is no subnormal number: who multiplies by tiny rounds once. The
// rounding of a^2 alone would cost a^2 / 2 ulp, so a is cut into two halves, h + l = a: h^2 is exact and a^2 = h^2 +
// l (a + h). Then as exp above, of twice the exponent.
template <class T> NF_INLINE Vec<T> gaussian_over_tiny(Vec<T> a) {
    using C = ExpConstants<T>;
    typedef typename VecOf<T>::bits Bits;
    const Vec<T> h = (Vec<T>)((Bits)a & NormalConstants<T>::upper_half);
    const Vec<T> square = h * h, rest = (a - h) * (a + h);
    const Vec<T> half_log2e = broadcast(C::log2e * T(-0.5));
    const T to_power = kToWhole<T> + kExponentBias<T> + NormalConstants<T>::raised;
    const Vec<T> sum = fma(square, half_log2e, broadcast(to_power));
    const Vec<T> whole = sum - to_power;
    const Vec<T> inside = fma(whole, broadcast(2 * C::ln2_low), fma(whole, broadcast(2 * C::ln2_high), square)) + rest;
    return exp2_fraction(inside * half_log2e) * power_in_low_bits<T>(sum);
}
template <class T> NF_INLINE Vec<T> normal_argument(Vec<T> x) {
    return min(broadcast(NormalConstants<T>::end), absolute<T>(x)); // the order keeps a NaN
}

// phi(x) = e^(-x^2 / 2) / sqrt(2 pi), the density of the standard normal distribution. At most 3 ulp.
template <class T> NF_INLINE Vec<T> normal_density_of(Vec<T> x) {
    return gaussian_over_tiny<T>(normal_argument<T>(x)) * T(0.39894228040143267794 * NormalConstants<T>::tiny);
}

// Phi(x), the standard normal distribution, also accurate where it is close to 0. At most 6 ulp (2 for x > 0).
template <class T> NF_INLINE Vec<T> normal_distribution_of(Vec<T> x) {
    using C = NormalConstants<T>;
    const Vec<T> a = normal_argument<T>(x);
    const Vec<T> t = T(1) / fma(a, broadcast(C::p), broadcast(T(1)));
    // What rounding took from t: near a = 0 the polynomial would multiply it by 2 / p.
    const Vec<T> rest = t * fma(t * -C::p, a, T(1) - t);
    const Vec<T> scaled = (t + rest) * C::tiny * polynomial((t - T(0.5)) + rest, C::tail);
    const Vec<T> tail = gaussian_over_tiny<T>(a) * scaled;
    return x > T(0) ? T(1) - tail : tail;
}

NF_INLINE Vec<float> sigmoid(Vec<float> x) { return sigmoid_of<float>(x); }
NF_INLINE Vec<double> sigmoid(Vec<double> x) { return sigmoid_of<double>(x); }
NF_INLINE Vec<float> tanh(Vec<float> x) { return tanh_of<float>(x); }
NF_INLINE Vec<double> tanh(Vec<double> x) { return tanh_of<double>(x); }
NF_INLINE Vec<float> normal_density(Vec<float> x) { return normal_density_of<float>(x); }
NF_INLINE Vec<double> normal_density(Vec<double> x) { return normal_density_of<double>(x); }
NF_INLINE Vec<float> normal_distribution(Vec<float> x) { return normal_distribution_of<float>(x); }
NF_INLINE Vec<double> normal_distribution(Vec<double> x) { return normal_distribution_of<double>(x); }

} // namespace nf::NUMFORMER_LEVEL
