// The cross-entropy of the logits x @ weight.T + bias, and its gradients, over chunks of rows: the logits are never
// held whole and never computed twice.
#pragma once
#include "ops/rowwise.hpp"

namespace nf::ops {

struct LinearCrossEntropy {
    // x (..., D) in C order, weight (V, D) with unit stride on one axis, targets (...), bias (V,) or null.
    View x, weight, targets;
    const View *bias = nullptr;
    int64_t ignore_index = -100;
    double label_smoothing = 0;
    Reduction reduction = Reduction::mean;
    double dloss = 1;
    int64_t chunk = 0; // rows; 0: kChunkBytes of logits
    int64_t used = 0;  // targets that are not ignored, set by check()

    void check();
    // dx like x, dweight like weight but in C order and, like dbias, perhaps float32 beside 16-bit types; all null, or
    // dbias where there is no bias. With `accumulate` dweight and dbias are added to. Returns the loss.
    double run(const View *dx, const View *dweight, const View *dbias, bool accumulate) const;

  private:
    int64_t chunk_count() const;
};

} // namespace nf::ops
