// The activation functions and their derivatives on one vector, shared by matmul's epilogue and the element-wise
// kernels.
#pragma once
#include "runtime/kernels.hpp"
#include "simd/math.hpp"

namespace nf::NUMFORMER_LEVEL {

// GELU's tanh form (Hendrycks and Gimpel, 2016): x/2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
// In this form nothing cancels for negative x.
constexpr double kGeluInner = 1.5957691216057307117; // 2 sqrt(2 / pi)
constexpr double kGeluCubic = 1.5957691216057307117 * 0.044715;

template <class A> NF_INLINE Vec<A> gelu_tanh(Vec<A> x) {
    const Vec<A> inner = x * fma(x * x, broadcast(A(kGeluCubic)), broadcast(A(kGeluInner)));
    return x * sigmoid(inner);
}
// sigmoid(2u) + x sigmoid(2u) (1 - sigmoid(2u)) (2u)'
template <class A> NF_INLINE Vec<A> gelu_tanh_derivative(Vec<A> x) {
    const Vec<A> square = x * x;
    const Vec<A> inner = x * fma(square, broadcast(A(kGeluCubic)), broadcast(A(kGeluInner)));
    const Vec<A> slope = fma(square, broadcast(A(3 * kGeluCubic)), broadcast(A(kGeluInner)));
    const Vec<A> s = sigmoid(inner);
    const Vec<A> tail = s * sigmoid(-inner) * x * slope;   // sigmoid(-z) rather than 1 - s: no cancellation
    return s + (s == s && tail != tail ? Vec<A>{} : tail); // 0 * inf far out is 0
}

// Phi(x) and phi(x), the standard normal distribution and density: gelu(x) = x Phi(x), gelu'(x) = Phi(x) + x phi(x).
template <class A> NF_INLINE Vec<A> gelu(Vec<A> x) { return x * normal_distribution(x); }
template <class A> NF_INLINE Vec<A> gelu_derivative(Vec<A> x) {
    return fma(x, normal_density(x), normal_distribution(x));
}

template <class A> NF_INLINE Vec<A> silu(Vec<A> x) { return x * sigmoid(x); }
template <class A> NF_INLINE Vec<A> silu_derivative(Vec<A> x) {
    return sigmoid(x) * fma(x, sigmoid(-x), broadcast(A(1)));
}

template <class A> NF_INLINE Vec<A> relu(Vec<A> x) { return x < A(0) ? Vec<A>{} : x; } // keeps a NaN

template <class A> NF_INLINE Vec<A> activate(Activation activation, Vec<A> x) {
    switch (activation) {
    case Activation::relu:
        return relu<A>(x);
    case Activation::gelu:
        return gelu<A>(x);
    case Activation::gelu_tanh:
        return gelu_tanh<A>(x);
    case Activation::silu:
        return silu<A>(x);
    case Activation::none:
        break;
    }
    return x;
}

} // namespace nf::NUMFORMER_LEVEL
