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

// The scores of a few rows before their softmax: all that happens to them, minus infinity where a query may not look
// and behind the last key up to whole registers.
template <class A, class T>
NF_INLINE void prepare_scores(const Scoring<A, T> &scoring, int64_t query, int64_t rows, int64_t key0, int64_t width,
                              A *scores) {
    const int64_t full_width = round_up(width, kLanes<A>);
    const bool complete = width == full_width && all_kept(scoring, query, rows, key0, width);
    for (int64_t i = 0; i < rows; ++i, scores += kRowStride) {
        if (!scoring.plain)
            change_scores<A, T>(scoring, query + i, key0, width, scores, nullptr);
        if (!complete)
            mask_scores(scoring, query + i, key0, width, full_width, scores);
    }
}

// In what scores are: units of log 2; products of query and key, which times `unit` are that; natural ones, of which
// one may be the lowest float, so that they are subtracted before they are multiplied.
enum class Scores { log2, products, natural };

// Scores of some rows, `width` of each (whole registers), become probabilities relative to the running maximum of each.
// `factors` gets those for what was summed before. As many rows at a time as a register has lanes: their maxima and
// sums become one register each.
template <class A, Scores KIND, class P>
static void softmax_rows(const A *scores, int64_t rows, int64_t width, A unit, A *maximum, A *sum, P *probabilities,
                         int64_t probabilities_row, A *factors) {
    constexpr int W = kLanes<A>;
    alignas(kVectorBytes) A shifts[W];
    for (int64_t row = 0; row < rows; row += W) {
        const int n = int(smaller(W, rows - row));
        Vec<A> of_row[W];
        for (int i = 0; i < W; ++i) {
            Vec<A> highest = broadcast(kMinusInfinity<A>);
            if (i < n)
                for (int64_t j = 0; j < width; j += W) // a NaN does not become the maximum, it reaches the sum below
                    highest = max(load(scores + (row + i) * kRowStride + j), highest);
            of_row[i] = highest;
        }
        const Vec<A> before = load_some(maximum + row, n), next = max(fold_lanes<Largest, A>(of_row), before);
        // Nothing seen yet: 2^-inf is 0, whatever is subtracted.
        const Vec<A> shift = next == kMinusInfinity<A> ? Vec<A>{} : next;
        store(shifts, shift);
        for (int i = 0; i < W; ++i) {
            Vec<A> total = {};
            if (i < n) {
                const Vec<A> of_all = broadcast(KIND == Scores::products ? shifts[i] * unit : shifts[i]);
                P *to = probabilities + (row + i) * probabilities_row;
                for (int64_t j = 0; j < width; j += W) {
                    const Vec<A> score = load(scores + (row + i) * kRowStride + j);
                    const Vec<A> p =
                        exp2_nonpositive<A>(KIND == Scores::log2       ? score - of_all
                                            : KIND == Scores::products ? fma(score, broadcast(unit), -of_all)
                                                                       : (score - of_all) * unit);
                    total += p;
                    store_probabilities(to + j, p);
                }
            }
            of_row[i] = total;
        }
        // Before the first score nothing was summed that would have to be scaled.
        const Vec<A> scaled = exp2_nonpositive<A>((before - shift) * unit);
        const Vec<A> factor = before == next || before == kMinusInfinity<A> ? broadcast(A(1)) : scaled;
        store_some(factors + row, factor, n);
        store_some(sum + row, load_some(sum + row, n) * factor + sums_of_lanes<A>(of_row), n);
        store_some(maximum + row, next, n);
    }
}

// Dropout of probabilities, which are where scores were.
template <class A, class T, class P>
static void drop_probabilities(const Scoring<A, T> &scoring, int64_t query, int64_t rows, int64_t key0, int64_t width,
                               const A *scores, P *probabilities, int64_t probabilities_row) {
    alignas(kVectorBytes) A keep[kBlockKeys];
    for (int64_t i = 0; i < rows; ++i) {
        dropout_factors<A, T, kBlockKeys>(scoring, query + i, key0, width, keep);
        for (int64_t j = 0; j < width; j += kLanes<A>)
            store_probabilities(probabilities + i * probabilities_row + j,
                                load(scores + i * kRowStride + j) * load(keep + j));
    }
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
