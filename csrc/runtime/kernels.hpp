// What ops and kernels agree on: the arguments of each kernel, and one table of function pointers a level.
// Plain data only, because kernels of every level include this.
#pragma once
#include "core/dtype.hpp"

#include <stdint.h>

namespace nf {

constexpr int kMaxAxes = 16;
constexpr int kFloatTypes = 4; // DType::f32, f64, f16, bf16: the index into the tables below

enum class Activation : int { none, relu, gelu, gelu_tanh, silu };

// out (M, N) = activation(scale * a (M, K) @ b (K, N) + bias) + residual, for each index of the batch axes.
// Strides are in elements; of a's and b's two strides one is 1, or the axis beside it has at most one element.
struct MatmulArgs {
    const void *a, *b;
    void *out;
    const void *bias;     // (N,) of bias_type, or null
    const void *residual; // like out, or null
    void *preactivation;  // like out, or null
    DType out_type, bias_type;
    int64_t m, n, k;
    int64_t a_row, a_col, b_row, b_col, out_row, residual_row, preactivation_row;
    double scale;
    Activation activation;
    bool accumulate; // out += instead of out =
    int batch_axes;
    int64_t batch_shape[kMaxAxes];
    int64_t a_batch[kMaxAxes], b_batch[kMaxAxes], out_batch[kMaxAxes], residual_batch[kMaxAxes],
        preactivation_batch[kMaxAxes];
};

// One operand of attention: rows of unit stride; `batch[i]` is the offset of the i-th index of the leading axes.
struct AttentionOperand {
    void *data;
    const int64_t *batch;
    int64_t head, row;
};

// Query i may attend to key j if low + i <= j <= high + i and the mask, if there is one, is not 0.
struct AttentionArgs {
    int64_t batches, heads, kv_heads, queries, keys, dim, value_dim;
    AttentionOperand q, k, v, out;
    AttentionOperand dout, dq, dk, dv; // backward only
    void *lse;                         // (batches, heads, queries), float or double; contiguous
    const uint8_t *mask;               // null, or one byte a pair
    const int64_t *mask_batch;
    int64_t mask_head, mask_query, mask_key;
    int64_t low, high;
    double scale;
};

// All return false when memory ran out.
struct Kernels {
    const char *level;
    bool (*matmul[kFloatTypes])(const MatmulArgs &args);
    bool (*attention[kFloatTypes])(const AttentionArgs &args);
    bool (*attention_backward[kFloatTypes])(const AttentionArgs &args);
};

namespace runtime {
// The kernels of the level chosen at import.
const Kernels &kernels();
} // namespace runtime

} // namespace nf
