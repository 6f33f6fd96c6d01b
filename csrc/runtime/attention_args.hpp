// The arguments of attention's kernels. Plain data only, because kernels of every level include this.
#pragma once
#include "core/dtype.hpp"

#include <stdint.h>

namespace nf {

// One operand: rows of unit stride; `batch[i]` is the offset of the i-th index of the leading axes.
struct AttentionOperand {
    void *data;
    const int64_t *batch;
    int64_t head, row;
};

// Something for each pair of a query and a key, broadcast by strides of 0. Null data: there is none.
struct AttentionPairs {
    const void *data;
    const int64_t *batch;
    int64_t head, query, key;
    DType type;
};

// Where the gradient of a bias goes: slices of (queries or 1) x (keys or 1), each the sum over its members.
struct AttentionBiasGradient {
    void *data; // contiguous, of the bias's type
    int64_t slices, queries, keys;
    const int64_t *first;   // of slice s: members [first[s], first[s + 1])
    const int64_t *members; // batch * heads + head
};

// Kept where the upper 24 bits of the pair's random word are at least `limit`; see kernels/random.hpp. Limit 0: no
// dropout.
struct AttentionDropout {
    uint32_t seed, layer, step, sample, limit;
    double factor;
};

// Transformer-XL: the product of query i and key j becomes (q_i + u) . k_j + (q_i + v) . r[middle + i - j]. Null r:
// there is none.
struct AttentionRelative {
    const void *r; // (heads, length, dim), of the type of q
    int64_t head, row, length;
    const double *bias_u, *bias_v; // (heads, dim)
    int64_t middle;                // row of r for key 0 and query 0
    int64_t first, count;          // the rows that the pattern needs, at least one
    void *dr;                      // backward only: contiguous (heads, length, dim), of the type of r
    double *du, *dv;               // (heads, dim)
};

// Query i may attend to key j if low + i <= j <= high + i and the mask, if there is one, is not 0. A call has one of
// these, or one for each sequence of a packed batch (then `batches` is 1).
struct AttentionArgs {
    int64_t batches, heads, kv_heads, queries, keys, dim, value_dim;
    int64_t first_head, first_kv_head; // heads of the sequences before
    AttentionOperand q, k, v, out;
    AttentionOperand dout, dq, dk, dv; // backward only
    void *lse;                         // float or double: row of (batch, head) at (batch * heads + head) * lse_row
    const void *dlse;                  // like lse, or null; backward only
    int64_t lse_row;
    AttentionPairs mask; // boolean
    int64_t low, high;
    // Self-attention with global tokens: they see, and are seen by, all keys up to causal_high + i. Without global_rows
    // they see nothing. Null: there are none.
    const uint8_t *global;       // (batches, queries)
    const int32_t *global_count; // (batches, queries + 1): how many come before
    bool global_rows;
    int64_t causal_high;
    double scale;
    AttentionRelative relative;
    // score = softcap tanh(scale q.k / softcap) + bias - slope |j - i - diagonal|, each where there is one
    bool plain;     // none of these, no dropout and no sinks
    double softcap; // 0: none
    AttentionPairs bias;
    const double *slopes; // one a head, or null
    int64_t diagonal;
    const double *sinks; // one a head, or null
    double *dsinks;      // one a (batch, head), or null; backward only
    AttentionDropout dropout;
    AttentionBiasGradient dbias; // backward only
};

} // namespace nf
