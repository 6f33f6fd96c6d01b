// The online softmax of the forward, a row of a block of keys at a time (Milakov and Gimelshein, 2018), shared by tiles
// and by decoding.
#pragma once
#include "kernels/attention_scores.hpp"

#include <math.h>

namespace nf::NUMFORMER_LEVEL {

constexpr int kBlockKeys = 512;
constexpr int kRowStride = kBlockKeys + 16; // rows 2 KiB apart would share cache sets

NF_INLINE void store_probabilities(float *to, Vec<float> p) { store(to, p); }
NF_INLINE void store_probabilities(double *to, Vec<double> p) { store(to, p); }
#if defined(__AVX512BF16__)
NF_INLINE void store_probabilities(bf16 *to, Vec<float> p) { store_flushed(to, p); }
#endif

// Scores of a row become probabilities (relative to the running maximum). Returns the factor for what was
// summed before. Differences of scores times `unit` are exponents of 2; kInLog2: it is 1.
template <class A, bool kInLog2, class P>
NF_INLINE A softmax_row(const A *scores, int64_t width, A unit, A &maximum, A &sum, P *probabilities) {
    constexpr int W = kLanes<A>;
    Vec<A> highest = broadcast(maximum);
    for (int64_t j = 0; j < width; j += W)
        highest = max(load(scores + j), highest); // a NaN does not become the maximum, it reaches the sum below
    const A next = reduce_max<A>(highest);
    const A shift = next == kMinusInfinity<A> ? A(0) : next; // nothing seen yet: 2^-inf is 0, whatever is subtracted
    Vec<A> total = {};
    const Vec<A> shifts = broadcast(shift);
    for (int64_t j = 0; j < width; j += W) {
        const Vec<A> exponent = load(scores + j) - shifts;
        const Vec<A> p = exp2_nonpositive<A>(kInLog2 ? exponent : exponent * unit);
        total += p;
        store_probabilities(probabilities + j, p);
    }
    // Before the first score nothing was summed that would have to be scaled.
    const bool unchanged = maximum == next || maximum == kMinusInfinity<A>;
    const A factor = unchanged ? A(1) : exp2_nonpositive<A>(broadcast((maximum - shift) * unit))[0];
    sum = sum * factor + reduce_add<A>(total);
    maximum = next;
    return factor;
}

// The same for scores that are not plain, all that happens to them included.
template <class A, class T, class P>
static A softmax_changed(const Scoring<A, T> &scoring, int64_t query, int64_t key0, int64_t width, A *row, A &maximum,
                         A &sum, P *probabilities) {
    const int64_t full_width = round_up(width, kLanes<A>);
    change_scores<A, T>(scoring, query, key0, width, row, nullptr);
    mask_scores(scoring, query, key0, width, full_width, row);
    if (!scoring.args->dropout.limit)
        return softmax_row<A, false>(row, full_width, A(kLog2e), maximum, sum, probabilities);
    const A factor = softmax_row<A, false>(row, full_width, A(kLog2e), maximum, sum, row);
    alignas(kVectorBytes) A keep[kBlockKeys];
    dropout_factors<A, T, kBlockKeys>(scoring, query, key0, width, keep);
    for (int64_t j = 0; j < full_width; j += kLanes<A>)
        store_probabilities(probabilities + j, load(row + j) * load(keep + j));
    return factor;
}

// What a row's running maximum and sum begin with: a sink is one more score, without a value.
template <class A> struct Start {
    A maximum, sum;
};
template <class A, class T> NF_INLINE Start<A> start_of(const Scoring<A, T> &scoring) {
    const double sink = scoring.args->sinks ? scoring.args->sinks[scoring.head] : kMinusInfinity<double>;
    if (sink == kMinusInfinity<double>)
        return {kMinusInfinity<A>, A(0)};
    if (sink - sink != 0) // NaN or inf
        return {kMinusInfinity<A>, A(__builtin_nan(""))};
    return {A(sink), A(1)}; // scores beside a sink are not plain
}

// The end of a row: its output from the sum of values, and lse.
template <class A, class T>
NF_INLINE void finish_row(const Scoring<A, T> &scoring, const A *o, A maximum, A sum, T *out, A *lse) {
    const A inverse = sum == 0 ? A(0) : A(1) / sum; // nothing to attend to: zeros
    for_each_vector<A>(scoring.args->value_dim,
                       [&](int64_t d, int n) { store_some(out + d, load_some(o + d, n) * inverse, n); });
    const double log_sum = ::log2(double(sum)) * kLn2;
    *lse = sum == 0 ? kMinusInfinity<A> : A(maximum * scoring.natural() + log_sum);
}

} // namespace nf::NUMFORMER_LEVEL
