// Softmax, layer norm, RMS norm and cross-entropy: checks, then the kernel. All views are contiguous and of one dtype
// (weights of norms may be float32 beside 16 bits);
// outputs were allocated with the shapes that the checks give. The `run_` functions need no Python.
#pragma once
#include "ops/check.hpp"

namespace nf::ops {

// Axis from 0, checked.
int softmax_axis(const char *operation, const View &x, int64_t axis);
void run_softmax(const View &x, int axis, const View &out);
void run_softmax_backward(const View &dy, const View &y, int axis, const View &dx);

// Null pointers stand for what there is not.
struct Norm {
    const char *operation;
    bool centred;
    const View *x = nullptr, *weight = nullptr, *bias = nullptr, *mean = nullptr, *rstd = nullptr;
    const View *dy = nullptr, *residual = nullptr, *dweight = nullptr, *dbias = nullptr;
    double eps = 0;

    void check() const;
    // Of weight, bias and their gradients.
    DType weight_type() const { return weight ? weight->dtype : bias ? bias->dtype : x->dtype; }
    void run(const View &out) const;         // also writes mean and rstd, if given
    void run_backward(const View &dx) const; // also writes dweight and dbias, if given
};

enum class Reduction { mean, sum, none };
Reduction reduction_from(const char *operation, const std::string &name);

// Over the rows in order, in double.
double sum_of(const View &row_losses);

struct CrossEntropy {
    const char *operation;
    View logits, targets;
    int64_t ignore_index;
    double label_smoothing;
    Reduction reduction;
    int64_t used = 0; // targets that are not ignored, set by check()

    void check();
    Shape loss_shape() const { return reduction == Reduction::none ? targets.shape : Shape{}; }
    void run(const View &row_losses, const View &lse) const;
    // The sum over rows; divided by `used` for the mean.
    double reduce(const View &row_losses) const;
    void run_backward(const View &dloss, const View &lse, const View &out) const;
};

} // namespace nf::ops
