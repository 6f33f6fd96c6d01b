// What ops and kernels agree on: the arguments of each kernel, and one table of function pointers a level.
// Plain data only, because kernels of every level include this.
#pragma once
#include "core/dtype.hpp"
#include "runtime/plan.hpp"

#include <stdint.h>

namespace nf {

constexpr int kMaxAxes = 16;
constexpr int kFloatTypes = 4; // DType::f32, f64, f16, bf16: the index into the tables below

enum class Activation : int { none, relu, gelu, gelu_tanh, silu };

// How a matrix that was packed beforehand is stored (kernels/panels.hpp): `none` is one that was not.
enum class Stored : int { none, f32, f64, f16, bf16_pairs, i8 };

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
    Stored stored; // if it is not none, b is a PackedMatrix's panels, `panel` units apart
    int64_t panel;
    const float *column_scale; // (N,) factors of b's columns, or null
    double scale;
    Activation activation;
    bool accumulate; // out += instead of out =
    int batch_axes;
    int64_t batch_shape[kMaxAxes];
    int64_t a_batch[kMaxAxes], b_batch[kMaxAxes], out_batch[kMaxAxes], residual_batch[kMaxAxes],
        preactivation_batch[kMaxAxes];
};

// panels = b (K, N), of which a stride is 1, stored as `stored`; column_scale (N,) is written for i8.
struct PackMatrixArgs {
    const void *b;
    void *panels;
    float *column_scale;
    Stored stored;
    int64_t n, k, b_row, b_col;
};

struct AttentionArgs; // runtime/attention_args.hpp

// Everything below reads and writes contiguous arrays.

// Softmax along the middle axis of (outer, count, inner). Backward: x is the y of the forward.
struct SoftmaxArgs {
    const void *x, *dy;
    void *out;
    int64_t outer, count, inner;
};

// Layer norm (centred) and RMS norm of rows. Statistics are float, or double for double.
struct NormArgs {
    const void *x, *weight, *bias; // weight and bias may be null
    DType weight_type;             // of weight, bias, dweight and dbias: that of x, or float32 beside a 16-bit one
    void *out, *mean, *rstd;       // forward: mean and rstd may be null; backward reads them, out is dx
    const void *dy, *residual;     // backward only; residual may be null
    void *dweight, *dbias;         // backward only; may be null
    int64_t rows, columns;
    double eps;
    bool centred;
};

struct ActivationArgs {
    const void *x, *dy; // dy: backward only
    void *out;
    int64_t count;
    Activation activation;
};

// Integers, int32 or int64, that were checked to be in range.
struct Integers {
    const void *data;
    bool wide;
};

struct CrossEntropyArgs {
    const void *logits;
    Integers targets;
    void *loss, *lse;  // (rows,), float or double; the forward writes both, the backward reads lse
    const void *dloss; // backward: one a row or, with dloss_stride 0, one for all
    int64_t dloss_stride;
    void *out; // dlogits, may be logits
    int64_t rows, columns, ignore_index;
    double label_smoothing, weight; // weight multiplies dloss
};

// Loss and gradient of rows of logits that are there for a moment only: `logits` are float (double for double) whatever
// the type of `out`, which may be `logits` where the types are one. Every target counts.
struct CrossEntropyGradientArgs {
    const void *logits;
    const int64_t *targets;
    void *loss, *out; // (rows,), float or double; dlogits
    int64_t rows, columns;
    double label_smoothing, dloss;
};

struct EmbeddingArgs {
    const void *rows; // forward: the table; backward: dy
    Integers ids;
    void *out;
    DType out_type; // backward: the type of rows, or float32
    int64_t count, vocabulary, columns, item_size;
    bool accumulate;
};

// out = x where kept / (1 - p) + residual, see core/philox.hpp; word >= limit * 2^8 is kept.
struct DropoutArgs {
    const void *x, *residual;
    void *out;
    int64_t samples, elements; // of all samples together
    const int64_t *starts;     // (samples + 1): where the elements of each sample begin; null: all have as many
    uint32_t seed, layer, step, sample, limit;
    double factor;
};

// out = a + b, with b again and again: `period` elements, which divide `count`.
struct AddArgs {
    const void *a, *b;
    DType b_type; // that of a, or float32 beside a 16-bit one
    void *out;
    int64_t count, period;
};

// out = scale * x, rounded once to out_type; out may be x where the types are one.
struct CastArgs {
    const void *x;
    void *out;
    DType out_type;
    int64_t count;
    double scale;
};

// out = or += sums, which are float, rounded once to a 16-bit type.
struct RoundSumsArgs {
    const float *sums;
    void *out;
    int64_t count;
    bool accumulate;
};

struct SumRowsArgs {
    const void *x;
    void *out;
    DType out_type; // that of x, or float32
    int64_t rows, columns;
    bool accumulate;
};

// Updates over lists of arrays: arrays[i] of sizes[i] elements. Constants of the rule are in `c`, see
// kernels/optimizer.cpp.
struct UpdateArgs {
    int64_t arrays;
    const int64_t *sizes;
    void *const *values;
    const void *const *grads;
    void *const *first, *const *second, *const *third; // what the rule remembers; null where it has none
    void *const *copies; // the new values in 16 bits, of copy_type; null, also of single arrays, where there is none
    DType copy_type;
    double grad_scale, c[9];
    bool nesterov;
};

struct NormOfListArgs {
    int64_t arrays;
    const int64_t *sizes;
    const void *const *data;
    double *sum_of_squares;
};

// All return false when memory ran out.
struct Kernels {
    const char *level;
    bool (*matmul[kFloatTypes])(const MatmulArgs &args);
    // What the panels of a matrix take, and one from the other, in units of `item` bytes.
    void (*size_of_packed)(Stored stored, int64_t k, int64_t n, int64_t &item, int64_t &panel, int64_t &units);
    void (*pack_matrix[kFloatTypes])(const PackMatrixArgs &args);
    void (*unpack_matrix)(const PackMatrixArgs &args); // into b: double for f64, else float
    bool (*attention[kFloatTypes])(const AttentionArgs *sequences, int64_t count);
    bool (*attention_backward[kFloatTypes])(const AttentionArgs *sequences, int64_t count);
    bool (*attention_bias_backward[kFloatTypes])(const AttentionArgs &args);
    bool (*attention_relative_backward[kFloatTypes])(const AttentionArgs *sequences, int64_t count);
    // What matmul, attention and attention_backward would do, without doing it.
    void (*plan_matmul[kFloatTypes])(const MatmulArgs &args, Plan &plan);
    void (*plan_attention[kFloatTypes])(const AttentionArgs *sequences, int64_t count, Plan &plan);
    void (*plan_attention_backward[kFloatTypes])(const AttentionArgs *sequences, int64_t count, Plan &plan);
    // The machine's ceilings: floating-point operations done in `rounds`; a sum over memory, read as 16 streams.
    double (*multiply_adds[kFloatTypes])(int64_t rounds);
    float (*read_streams)(const float *x, int64_t count);
    bool (*softmax[kFloatTypes])(const SoftmaxArgs &args);
    bool (*softmax_backward[kFloatTypes])(const SoftmaxArgs &args);
    bool (*norm[kFloatTypes])(const NormArgs &args);
    bool (*norm_backward[kFloatTypes])(const NormArgs &args);
    bool (*activation[kFloatTypes])(const ActivationArgs &args);
    bool (*activation_backward[kFloatTypes])(const ActivationArgs &args);
    bool (*cross_entropy[kFloatTypes])(const CrossEntropyArgs &args);
    bool (*cross_entropy_backward[kFloatTypes])(const CrossEntropyArgs &args);
    bool (*cross_entropy_gradient[kFloatTypes])(const CrossEntropyGradientArgs &args);
    bool (*embedding)(const EmbeddingArgs &args);
    bool (*embedding_backward[kFloatTypes])(const EmbeddingArgs &args);
    bool (*dropout[kFloatTypes])(const DropoutArgs &args);
    bool (*add[kFloatTypes])(const AddArgs &args);
    bool (*cast[kFloatTypes])(const CastArgs &args);
    bool (*sum_rows[kFloatTypes])(const SumRowsArgs &args);
    bool (*round_sums[kFloatTypes])(const RoundSumsArgs &args); // float16 and bfloat16 only
    bool (*sgd_update[2])(const UpdateArgs &args);              // float32 and float64 only
    bool (*adam_update[2])(const UpdateArgs &args);
    bool (*adagrad_update[2])(const UpdateArgs &args);
    bool (*rmsprop_update[2])(const UpdateArgs &args);
    bool (*sum_of_squares[kFloatTypes])(const NormOfListArgs &args);
};

namespace runtime {
// The kernels of the level chosen at import.
const Kernels &kernels();
} // namespace runtime

} // namespace nf
