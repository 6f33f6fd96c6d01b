// matmul: checks and shapes, then the kernel.
#pragma once
#include "core/view.hpp"
#include "ops/packed_matrix.hpp"
#include "runtime/kernels.hpp"

#include <string>

namespace nf::ops {

Activation activation_from(const char *operation, const std::string &name);

// Strides of a view's last two axes, of which one is 1 or meaningless.
void matrix_strides(const View &view, int64_t &row, int64_t &col);

class Matmul {
  public:
    // Checks a and b (unit stride on one of their last two axes) and works out the shape of the output.
    Matmul(const View &a, const View &b);
    Matmul(const View &a, const PackedMatrix &b);
    const Shape &out_shape() const { return out_shape_; }

    // Each checks its argument. `out`, `residual` and `preactivation` have out_shape() and unit stride on the last
    // axis.
    void set_bias(const View &bias);
    void set_residual(const View &residual);
    void set_preactivation(const View &preactivation);
    void set_scale(double scale);
    void set_activation(Activation activation) { args_.activation = activation; }
    void set_accumulate(bool accumulate) { args_.accumulate = accumulate; }

    // Needs no Python. `out` must not overlap any input but a residual with the same strides.
    void run(const View &out);

  private:
    void set_matrix_strides(const View &view, int64_t &row, int64_t *batch) const;

    MatmulArgs args_{};
    DType dtype_;
    Shape out_shape_;
    bool a_is_vector_, b_is_vector_;
};

} // namespace nf::ops
