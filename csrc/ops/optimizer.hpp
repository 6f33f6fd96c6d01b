// Updates in place over lists of contiguous arrays of one dtype (their copies in 16 bits aside), and the norm of a list
// (any dtypes): checks, then the kernel.
#pragma once
#include "ops/check.hpp"

#include <vector>

namespace nf::ops {

struct Lists {
    std::vector<View> values, grads, first, second, third; // the last three may be empty: there is none
    std::vector<View> copies; // empty, or for each value where it goes in 16 bits as well; without data: nowhere
};

struct Sgd {
    double lr, momentum, weight_decay, grad_scale;
    bool nesterov;
    void check(const Lists &lists, bool has_momenta) const;
    void run(const Lists &lists) const;
};

struct Adam {
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
    bool decoupled; // AdamW
    const char *name() const { return decoupled ? "adamw_update" : "adam_update"; }
    void check(const Lists &lists) const;
    void run(const Lists &lists) const;
};

struct Adagrad {
    double lr, eps, weight_decay, grad_scale;
    void check(const Lists &lists) const;
    void run(const Lists &lists) const;
};

struct RmsProp {
    double lr, alpha, eps, weight_decay, momentum, grad_scale;
    void check(const Lists &lists, bool has_means, bool has_momenta) const;
    void run(const Lists &lists) const;
};

double run_global_norm(const std::vector<View> &arrays);

} // namespace nf::ops
