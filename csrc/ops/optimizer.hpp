// Updates in place over lists of contiguous arrays of one dtype, and the norm of a list (any dtypes): checks, then the
// kernel.
#pragma once
#include "ops/check.hpp"

#include <vector>

namespace nf::ops {

struct Lists {
    std::vector<View> values, grads, first, second; // first and second may be empty: there is none
};

struct Sgd {
    double lr, momentum, weight_decay, grad_scale;
    bool nesterov;
    void check(const Lists &lists, bool has_momenta) const;
    void run(const Lists &lists) const;
};

struct AdamW {
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
    void check(const Lists &lists) const;
    void run(const Lists &lists) const;
};

double run_global_norm(const std::vector<View> &arrays);

} // namespace nf::ops
