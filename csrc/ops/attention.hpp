// attention and attention_backward: checks and shapes, then the kernels.
#pragma once
#include "core/view.hpp"
#include "runtime/attention_args.hpp"
#include "runtime/kernels.hpp"

#include <optional>
#include <vector>

namespace nf::ops {

enum class Causal { no, bottom_right, top_left };

// Where the random numbers of dropout come from; see kernels/random.hpp.
struct AttentionSeed {
    int64_t seed = 0, layer = 0, step = 0, sample = 0;
};

// The gradients beside those of q, k and v, where they are wanted.
struct AttentionGradients {
    std::optional<View> dbias;                     // contiguous, in the shape and dtype of bias
    double *dsinks = nullptr;                      // one a head
    std::optional<View> dr;                        // of relative positions: contiguous, in the shape and dtype of r
    double *dbias_u = nullptr, *dbias_v = nullptr; // (H, D)
};

class Attention {
  public:
    // q (..., H, N, D), k (..., Hkv, M, D), v (..., Hkv, M, Dv), unit stride on the last axis; two axes mean one head.
    Attention(const char *operation, const View &q, const View &k, const View &v);

    // Null pointers: no limit on that side.
    void set_pattern(Causal causal, const int64_t *left, const int64_t *right);
    void set_mask(const View &mask); // boolean, any strides, broadcast to (..., H, N, M)
    void set_bias(const View &bias); // float, any strides, broadcast to (..., H, N, M)
    void set_scale(double scale);
    void set_softcap(double softcap);
    void check_per_head(const char *argument, const View &view) const; // (H,)
    void set_slopes(const double *slopes);                             // one a head, as long as this lives
    void set_sinks(const double *sinks);
    // (..., N) boolean, of self-attention; any strides.
    void set_global_tokens(const View &tokens, bool rows);
    // Transformer-XL's relative positions: r (H, L, D) with unit stride on the last axis, both biases (H, D) as long as
    // this lives. The last option to be set: pattern, global tokens and sequences say what rows of r are needed.
    void check_relative_bias(const char *argument, const View &view) const;
    void set_relative(const View &r, const double *bias_u, const double *bias_v, int64_t origin);
    // q, k and v are packed sequences, (H, total, D) each; sequence s has rows [starts[s], starts[s + 1]). Contiguous
    // integers. After dropout.
    void set_sequences(const View &query_starts, const View &key_starts);
    void set_dropout(double p, const AttentionSeed &seed);

    Shape out_shape() const;
    Shape lse_shape() const;
    DType lse_dtype() const { return dtype_ == DType::f64 ? DType::f64 : DType::f32; }

    // `out` has out_shape() and unit stride on its last axis, lse is contiguous. None of these needs Python.
    void forward(const View &out, const View &lse);
    // dlse: like lse, or null.
    void backward(const View &dout, const View &out, const View &lse, const View *dlse, const View &dq, const View &dk,
                  const View &dv, const AttentionGradients &more);

  private:
    AttentionOperand operand(const View &view);
    AttentionPairs pairs_of(const char *argument, const View &view);
    void require_like_q(const char *argument, DType dtype) const;
    void lay_out_bias_gradient(const View &dbias);
    void apply_pattern(AttentionArgs &args) const;
    // The rows of r that the queries of `args` need; none if no query sees a key.
    void apply_relative(AttentionArgs &args) const;
    // One for each sequence, with pointers to its rows.
    std::vector<AttentionArgs> sequences() const;

    const char *operation_;
    DType dtype_;
    Shape leading_, q_shape_, v_shape_;
    int64_t batches_ = 1;
    AttentionArgs args_{};
    std::vector<std::vector<int64_t>> offsets_; // of the leading axes, one list an operand
    std::vector<double> dsinks_;                // one a (batch, head)
    std::vector<int64_t> slice_first_, slice_members_;
    std::vector<uint8_t> global_;
    std::vector<int32_t> global_count_;
    Causal causal_ = Causal::no;
    std::optional<int64_t> left_, right_;
    int64_t origin_ = 0;
    std::optional<std::vector<int64_t>> query_starts_, key_starts_;
};

} // namespace nf::ops
