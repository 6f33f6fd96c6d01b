// The launchers: they choose a kernel and a grid. Shapes and dtypes were checked (bindings.cpp). README.md says what
// each does.
#pragma once
#include "cuda/arrays.hpp"

namespace nf::cuda {

typedef void *Stream; // cudaStream_t

// What the CPU has and this does not.
struct NotThere : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct NormInputs {
    const char *operation;
    Array x;
    MaybeArray weight, bias;
    bool centred;
};
void norm(const NormInputs &in, const Array &out, const MaybeArray &mean, const MaybeArray &rstd, double eps,
          Stream stream);
void norm_backward(const NormInputs &in, const Array &dy, const MaybeArray &mean, const Array &rstd,
                   const MaybeArray &residual, const Array &dx, const MaybeArray &dweight, const MaybeArray &dbias,
                   const Allocate &allocate, Stream stream);

void activation(const Array &out, const Array &x, int which, Stream stream);
void activation_backward(const Array &dx, const Array &dy, const Array &x, int which, Stream stream);
void add(const Array &out, const Array &a, const Array &b, Stream stream);
void cast(const Array &out, const Array &x, double scale, Stream stream);
void sum_rows(const Array &out, const Array &x, bool accumulate, const Allocate &allocate, Stream stream);
void softmax(const Array &out, const Array &x, Stream stream);
void softmax_backward(const Array &dx, const Array &dy, const Array &y, Stream stream);

struct DropoutKey {
    double p = 0;
    uint32_t seed = 0, layer = 0, step = 0, sample = 0;
};
void dropout(const Array &out, const Array &x, const MaybeArray &residual, const DropoutKey &key, int64_t samples,
             const MaybeArray &starts, Stream stream);

struct RelativeInputs {
    Array r, u, v; // (heads, L, D), unit stride on the last axis; (heads, D)
    int64_t origin;
};
struct RelativeGradients {
    Array r, u, v;
};

struct AttentionInputs {
    const char *operation;
    Array q, k, v;
    MaybeArray mask, bias, slopes, sinks, query_starts, key_starts, global;
    std::optional<RelativeInputs> relative;
    bool global_rows = true;
    bool causal = false, top_left = false;
    std::optional<int64_t> left, right;
    double scale = 1, softcap = 0;
    bool tf32 = false;
    DropoutKey dropout;
    std::string kernel; // "mma.sync", "wgmma": no other; empty: the best
};
// Returns the kernel's name, as above.
const char *attention(const AttentionInputs &in, const Array &out, const MaybeArray &lse, const Allocate &allocate,
                      Stream stream);
const char *attention_backward(const AttentionInputs &in, const Array &dout, const Array &out, const Array &lse,
                               const MaybeArray &dlse, const Array &dq, const Array &dk, const Array &dv,
                               const MaybeArray &dsinks, const MaybeArray &dbias,
                               const std::optional<RelativeGradients> &drelative, const Allocate &allocate,
                               Stream stream);

struct CrossEntropyInputs {
    Array logits, targets; // targets: integers
    int64_t ignore_index;
    double label_smoothing;
};
void cross_entropy(const CrossEntropyInputs &in, const MaybeArray &loss, const Array &losses, const Array &lse,
                   bool mean, Stream stream);
void cross_entropy_backward(const CrossEntropyInputs &in, const Array &dlogits, const Array &dloss, const Array &lse,
                            bool mean, const Allocate &allocate, Stream stream);
void cross_entropy_gradient(const CrossEntropyInputs &in, const Array &losses, const Array &dlogits, const Array &count,
                            double dloss, Stream stream);
void count_targets(const Array &count, const Array &targets, int64_t ignore_index, bool mean, Stream stream);

void embedding(const Array &out, const Array &weight, const Array &ids, Stream stream);
void embedding_backward(const Array &dweight, const Array &dy, const Array &ids, bool accumulate,
                        const Allocate &allocate, Stream stream);

// Lists of arrays; what a rule does not remember is empty. The constants `c` of a rule: csrc/kernels/optimizer.cpp.
struct UpdateInputs {
    const char *operation;
    std::vector<Array> values, grads, first, second, third;
    std::vector<MaybeArray> copies;
    double c[9] = {};
    bool nesterov = false;
    double grad_scale = 1, max_norm = 0;
    MaybeArray norm;
};
void sgd_update(const UpdateInputs &in, Stream stream);
void adam_update(const UpdateInputs &in, Stream stream);
void adagrad_update(const UpdateInputs &in, Stream stream);
void rmsprop_update(const UpdateInputs &in, Stream stream);
void lion_update(const UpdateInputs &in, Stream stream);
// first: rows, second: columns (empty arrays beside vectors); c = {share, rate, keep, eps1, eps2, d}.
void adafactor_update(const UpdateInputs &in, const Allocate &allocate, Stream stream);
void global_norm(const Array &out, const std::vector<Array> &arrays, const Allocate &allocate, Stream stream);

struct MatmulInputs {
    Array a, b; // (..., M, K) and (..., K, N); one of the last two strides is 1
    MaybeArray bias, residual;
    int activation = 0;
    double scale = 1;
    bool accumulate = false;
};
void matmul(const MatmulInputs &in, const Array &out, const MaybeArray &preactivation, const Allocate &allocate,
            Stream stream);

} // namespace nf::cuda
