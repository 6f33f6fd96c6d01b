// attention and attention_backward: checks and shapes, then the kernels.
#pragma once
#include "core/view.hpp"
#include "runtime/kernels.hpp"

#include <vector>

namespace nf::ops {

enum class Causal { no, bottom_right, top_left };

class Attention {
  public:
    // q (..., H, N, D), k (..., Hkv, M, D), v (..., Hkv, M, Dv), unit stride on the last axis; two axes mean one head.
    Attention(const char *operation, const View &q, const View &k, const View &v);

    // Null pointers: no limit on that side.
    void set_pattern(Causal causal, const int64_t *left, const int64_t *right);
    void set_mask(const View &mask); // boolean, any strides, broadcast to (..., H, N, M)
    void set_scale(double scale);

    Shape out_shape() const;
    Shape lse_shape() const;
    DType lse_dtype() const { return dtype_ == DType::f64 ? DType::f64 : DType::f32; }

    // `out` has out_shape() and unit stride on its last axis, lse is contiguous. Neither needs Python.
    void forward(const View &out, const View &lse);
    void backward(const View &dout, const View &out, const View &lse, const View &dq, const View &dk, const View &dv);

  private:
    AttentionOperand operand(const View &view);

    const char *operation_;
    DType dtype_;
    Shape leading_, q_shape_, v_shape_;
    int64_t batches_ = 1;
    AttentionArgs args_{};
    std::vector<std::vector<int64_t>> offsets_; // of the leading axes, one list an operand
};

} // namespace nf::ops
