// The product as a plain loop: no kernel, because cuBLASLt's takes its place on a device.
#include "cuda/gemm.hpp"
#include "cuda/kernels/activation.hpp"

namespace nf::cuda {
namespace {

template <class T, class O> void multiply(const Gemm &p) {
    typedef Acc<T> A;
    for (int64_t batch = 0; batch < p.batch; ++batch)
        for (int64_t i = 0; i < p.m; ++i)
            for (int64_t j = 0; j < p.n; ++j) {
                A sum = 0;
                for (int64_t k = 0; k < p.k; ++k)
                    sum += load(static_cast<const T *>(p.a), batch * p.a_batch + i * p.a_row + k * p.a_column) *
                           load(static_cast<const T *>(p.b), batch * p.b_batch + k * p.b_row + j * p.b_column);
                A y = sum * A(p.scale);
                if (p.bias)
                    y += A(load(static_cast<const O *>(p.bias), j));
                if (p.preactivation)
                    store(static_cast<O *>(p.preactivation),
                          batch * p.preactivation_batch + i * p.preactivation_row + j, y);
                if (p.gelu_tanh)
                    y = activate(Activation::gelu_tanh, y);
                if (p.c)
                    y += A(load(static_cast<const O *>(p.c), batch * p.c_batch + i * p.c_row + j));
                store(static_cast<O *>(p.out), batch * p.out_batch + i * p.out_row + j, y);
            }
}

} // namespace

bool gemm(const Gemm &product, const Allocate &, Stream) {
    if (product.bias && product.bias_type != product.out_type)
        return false; // as the library is documented
    with_wide(product.in_type, product.out_type, [&](auto t, auto o) { multiply<decltype(t), decltype(o)>(product); });
    return true;
}

} // namespace nf::cuda
