// The product itself: cuBLASLt's (gemm.cpp), or a plain loop in the tests (tests/cuda/host/gemm.cpp).
#pragma once
#include "cuda/api.hpp"

namespace nf::cuda {

// out = f(scale a @ b + bias) + c for each of `batch` matrices, c being null, out itself or another matrix like out; f:
// nothing, or GELU in its tanh form. Strides in elements; of a's and b's two one is 1.
struct Gemm {
    const void *a, *b, *c, *bias; // c and bias may be null
    void *out;
    DType in_type, out_type, bias_type;
    int64_t m, n, k, batch;
    int64_t a_row, a_column, b_row, b_column, c_row, out_row;
    int64_t a_batch, b_batch, c_batch, out_batch;
    double scale;
    bool gelu_tanh;
    void *preactivation; // like out, in C order; with gelu_tanh only
    int64_t preactivation_row, preactivation_batch;
};

// False: not in one pass (nothing was launched). Without bias, GELU and c it is always true.
bool gemm(const Gemm &product, const Allocate &allocate, Stream stream);

} // namespace nf::cuda
