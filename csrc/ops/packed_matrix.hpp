// A matrix (K, N) packed once, to be the b of many products.
#pragma once
#include "core/view.hpp"
#include "runtime/kernels.hpp"

#include <memory>

namespace nf::ops {

class PackedMatrix {
  public:
    // `b` has two axes, unit stride on one of them. std::bad_alloc when memory ran out.
    PackedMatrix(const View &b, Stored stored);

    int64_t rows() const { return k_; }
    int64_t columns() const { return n_; }
    Stored stored() const { return stored_; }
    int64_t bytes() const { return bytes_; }
    int64_t panel() const { return panel_; }
    const void *panels() const { return panels_.get(); }
    const float *column_scale() const { return column_scale_.get(); }
    // The matrix as it was stored, into `out` (K, N): double for f64, else float, unit stride on the last axis.
    void unpack(const View &out) const;

  private:
    struct Release {
        void operator()(void *memory) const;
    };
    PackMatrixArgs arguments(const void *b) const; // but for b's strides

    int64_t k_, n_, panel_, bytes_;
    Stored stored_;
    std::unique_ptr<void, Release> panels_;
    std::unique_ptr<float, Release> column_scale_; // null but for i8
};

} // namespace nf::ops
