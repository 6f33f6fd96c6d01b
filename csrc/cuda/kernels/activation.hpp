// ReLU, GELU (Hendrycks and Gimpel, 2016; exact and in its tanh form) and SiLU, forward and backward, element by
// element. The formulas are those of csrc/kernels/activation.hpp.
#pragma once
#include "cuda/kernels/packs.hpp"

namespace nf::cuda {

enum class Activation : int { none, relu, gelu, gelu_tanh, silu };

// 1 / (1 + exp(-x)), without cancellation on either side.
template <class A> NF_DEVICE A sigmoid(A x) {
    const A e = exp_of(x < 0 ? x : -x);
    return (x < 0 ? e : A(1)) / (A(1) + e); // a NaN comes out of e
}

// It, and that of -x: by one exponential and one division.
template <class A> struct Sigmoids {
    A of_x, of_minus_x;
    NF_DEVICE explicit Sigmoids(A x) {
        const A e = exp_of(x < 0 ? x : -x), larger = A(1) / (A(1) + e), smaller = e * larger;
        of_x = x < 0 ? smaller : larger;
        of_minus_x = x < 0 ? larger : smaller;
    }
};

// GELU's tanh form is x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
constexpr double kGeluInner = 1.5957691216057307117; // 2 sqrt(2 / pi)
constexpr double kGeluCubic = 1.5957691216057307117 * 0.044715;

// P(X <= x) of the standard normal distribution.
template <class A> NF_DEVICE A normal_distribution(A x) { return A(0.5) * erfc_of(x * A(-0.70710678118654752440)); }

template <class A> NF_DEVICE A activate(Activation activation, A x) {
    switch (activation) {
    case Activation::relu:
        return x < 0 ? A(0) : x; // keeps a NaN
    case Activation::gelu:
        return x * normal_distribution(x);
    case Activation::gelu_tanh:
        return x * sigmoid(x * (x * x * A(kGeluCubic) + A(kGeluInner)));
    case Activation::silu:
        return x * sigmoid(x);
    default:
        return x;
    }
}

template <class A> NF_DEVICE A activation_derivative(Activation activation, A x) {
    switch (activation) {
    case Activation::relu:
        return x > 0 ? A(1) : A(0);
    case Activation::gelu: {
        const A density = exp_of(A(-0.5) * x * x) * A(0.39894228040143267794);
        return normal_distribution(x) + x * density;
    }
    case Activation::gelu_tanh: {
        const A square = x * x, inner = x * (square * A(kGeluCubic) + A(kGeluInner));
        const Sigmoids<A> both(inner);
        const A s = both.of_x, t = s * both.of_minus_x; // rather than 1 - s
        // 0 * inf far out is 0
        return s + (t == 0 ? A(0) : t * x * (square * A(3 * kGeluCubic) + A(kGeluInner)));
    }
    case Activation::silu: {
        const Sigmoids<A> both(x);
        return both.of_x * (A(1) + x * both.of_minus_x);
    }
    default:
        return A(1);
    }
}

struct ActivationArgs {
    const void *x, *dy; // dy: backward only
    void *out;
    int64_t count;
    Activation activation;
    bool is_aligned;
};

constexpr int kElementThreads = 256;

template <class T> NF_KERNEL(kElementThreads) activation(NF_ARGS ActivationArgs args) {
    const T *x = static_cast<const T *>(args.x);
    T *out = static_cast<T *>(args.out);
    constexpr int kCount = kPack<T>;
    for_packs<kCount>(
        args.count, kElementThreads,
        [&](int64_t first) {
            Acc<T> values[kCount];
            load_pack(x + first, args.is_aligned, values);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                values[i] = activate(args.activation, values[i]);
            store_pack(out + first, args.is_aligned, values);
        },
        [&](int64_t i) { store(out, i, activate(args.activation, load(x, i))); });
}

template <class A> NF_DEVICE A activation_gradient(Activation activation, A dy, A x) {
    const A slope = activation_derivative(activation, x);
    // A gradient that is not finite does not pass a closed ReLU.
    return activation == Activation::relu && slope == 0 ? A(0) : dy * slope;
}

template <class T> NF_KERNEL(kElementThreads) activation_backward(NF_ARGS ActivationArgs args) {
    const T *x = static_cast<const T *>(args.x), *dy = static_cast<const T *>(args.dy);
    T *out = static_cast<T *>(args.out);
    constexpr int kCount = kPack<T>;
    for_packs<kCount>(
        args.count, kElementThreads,
        [&](int64_t first) {
            Acc<T> values[kCount], slopes[kCount];
            load_pack(x + first, args.is_aligned, slopes);
            load_pack(dy + first, args.is_aligned, values);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                values[i] = activation_gradient(args.activation, values[i], slopes[i]);
            store_pack(out + first, args.is_aligned, values);
        },
        [&](int64_t i) { store(out, i, activation_gradient(args.activation, load(dy, i), load(x, i))); });
}

} // namespace nf::cuda
