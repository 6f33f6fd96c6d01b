// Activations, addition, conversion, sums over rows, embedding and dropout: checks, then the kernel. All views are
// contiguous.
#pragma once
#include "ops/check.hpp"

namespace nf::ops {

void run_activation(const char *operation, Activation activation, const View &x, const View &out);
void run_activation_backward(const char *operation, Activation activation, const View &dy, const View &x,
                             const View &dx);

// b has the shape of a, or that of its last axes.
void check_add(const View &a, const View &b);
void run_add(const View &a, const View &b, const View &out);
void run_cast(const View &x, double scale, const View &out);
void run_sum_rows(const View &x, bool accumulate, const View &out);

// Shapes of the results, after the checks.
Shape check_embedding(const View &weight, const View &ids);
Shape check_embedding_backward(const View &dy, const View &ids, int64_t num_embeddings);
void run_embedding(const View &weight, const View &ids, const View &out);
void run_embedding_backward(const View &dy, const View &ids, bool accumulate, const View &out);

struct Dropout {
    const char *operation;
    double p;
    int64_t seed, layer, step, sample;

    // Axis 0 is the sample; with `starts`, contiguous integers, sample s is rows [starts[s], starts[s + 1]) of it.
    void check(const View &x, const View *residual, const View *starts);
    void run(const View &x, const View *residual, const View &out) const;

    // Set by check().
    int64_t samples = 0;
    std::vector<int64_t> starts_of_samples = {}; // in elements, where they are of different lengths
};

} // namespace nf::ops
