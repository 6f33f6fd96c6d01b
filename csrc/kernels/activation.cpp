// Activations on their own (matmul has them in its epilogue): y = f(x), and dx = dy f'(x). The functions:
// activation.hpp.
#include "kernels/activation.hpp"
#include "kernels/rows.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

template <class T, class F> void each_vector(const ActivationArgs &args, F f) {
    typedef Acc<T> A;
    const T *x = static_cast<const T *>(args.x), *dy = static_cast<const T *>(args.dy);
    T *out = static_cast<T *>(args.out);
    parallel_ranges(args.count, kHeavyGrain, [&](int64_t begin, int64_t end) {
        for_each_vector<A>(end - begin, [&](int64_t i, int n) {
            const int64_t at = begin + i;
            store_some(out + at, f(load_some(x + at, n), dy ? load_some(dy + at, n) : Vec<A>{}), n);
        });
    });
}

template <class T> bool activation(const ActivationArgs &args) {
    typedef Acc<T> A;
    switch (args.activation) {
    case Activation::relu:
        each_vector<T>(args, [](Vec<A> x, Vec<A>) { return relu<A>(x); });
        break;
    case Activation::gelu:
        each_vector<T>(args, [](Vec<A> x, Vec<A>) { return gelu<A>(x); });
        break;
    case Activation::gelu_tanh:
        each_vector<T>(args, [](Vec<A> x, Vec<A>) { return gelu_tanh<A>(x); });
        break;
    case Activation::silu:
        each_vector<T>(args, [](Vec<A> x, Vec<A>) { return silu<A>(x); });
        break;
    case Activation::none:
        each_vector<T>(args, [](Vec<A> x, Vec<A>) { return x; });
        break;
    }
    return true;
}

template <class T> bool activation_backward(const ActivationArgs &args) {
    typedef Acc<T> A;
    switch (args.activation) {
    case Activation::relu: // relu'(0) = 0; a choice, not a product: 0 * inf must not be
        each_vector<T>(args, [](Vec<A> x, Vec<A> dy) { return x > A(0) ? dy : Vec<A>{}; });
        break;
    case Activation::gelu:
        each_vector<T>(args, [](Vec<A> x, Vec<A> dy) { return dy * gelu_derivative<A>(x); });
        break;
    case Activation::gelu_tanh:
        each_vector<T>(args, [](Vec<A> x, Vec<A> dy) { return dy * gelu_tanh_derivative<A>(x); });
        break;
    case Activation::silu:
        each_vector<T>(args, [](Vec<A> x, Vec<A> dy) { return dy * silu_derivative<A>(x); });
        break;
    case Activation::none:
        each_vector<T>(args, [](Vec<A>, Vec<A> dy) { return dy; });
        break;
    }
    return true;
}

} // namespace

void fill_activation(Kernels &table) {
    NF_FILL(activation, activation);
    NF_FILL(activation_backward, activation_backward);
}

} // namespace nf::NUMFORMER_LEVEL
