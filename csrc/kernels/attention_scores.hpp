// What happens to scores between the product of queries and keys and the softmax: softcap, bias, ALiBi, masks; and to
// probabilities after it: dropout. Forward and backward call the same functions on the same rows.
//
// Plain scores (masks only) are in units of log 2, a factor that lies in Q already, so that exp is 2^x. The others are
// in natural units: a bias may be as large as the largest float, and must not overflow. Products of pairs of bfloat16
// take Q as it is: then plain scores are in units of 1 / scale, and the others are scaled before anything else.
#pragma once
#include "kernels/attention.hpp"
#include "kernels/random.hpp"

namespace nf::NUMFORMER_LEVEL {

// For one head. Pointers are null where there is nothing.
template <class A, class T> struct Scoring {
    const AttentionArgs *args;
    bool plain, scaled; // scaled: the factor lies in Q
    const uint8_t *mask;
    KeyRange seen; // what the mask leaves, if it is the same for all queries
    const void *bias;
    const uint8_t *global;
    const int32_t *global_count;
    A slope;
    int64_t head;
    uint32_t sample;
    RoundKeys keys;

    static Scoring of(const AttentionArgs &args, int64_t batch, int64_t head) {
        Scoring s;
        s.args = &args;
        s.plain = args.plain;
        s.scaled = true;
        s.mask = args.mask.data
                     ? static_cast<const uint8_t *>(args.mask.data) + args.mask.batch[batch] + head * args.mask.head
                     : nullptr;
        s.seen = {0, args.keys};
        s.bias = nullptr;
        if (args.bias.data) {
            const int64_t offset = args.bias.batch[batch] + head * args.bias.head;
            s.bias = static_cast<const char *>(args.bias.data) + offset * kItemSize[int(args.bias.type)];
        }
        s.global = args.global ? args.global + batch * args.queries : nullptr;
        s.global_count = args.global ? args.global_count + batch * (args.queries + 1) : nullptr;
        s.slope = args.slopes ? A(args.slopes[head]) : A(0);
        s.head = head;
        s.sample = uint32_t(args.dropout.sample + batch);
        if (args.dropout.limit)
            s.keys = round_keys(args.dropout.seed, args.dropout.layer);
        return s;
    }

    // A mask that is the same for all queries, as that of padding, narrows the range of keys. If there is no gap
    // within, that is all it does.
    void narrow() {
        if (!mask || global || args->mask.query != 0)
            return;
        const int64_t stride = args->mask.key;
        while (seen.last > seen.first && !mask[(seen.last - 1) * stride])
            --seen.last;
        while (seen.first < seen.last && !mask[seen.first * stride])
            ++seen.first;
        int64_t kept = 0;
        for (int64_t j = seen.first; j < seen.last; ++j)
            kept += mask[j * stride] != 0;
        if (kept == seen.last - seen.first)
            mask = nullptr;
    }

    // For q as it is. The order of plain scores in units of 1 / scale must be that of the scores.
    void leave_queries() {
        scaled = false;
        plain = plain && args->scale > 0;
    }

    // What q is multiplied by; what turns a difference of scores into an exponent of 2, and a score into a natural one.
    A factor() const { return A(plain ? args->scale * kLog2e : args->scale); }
    A unit() const { return A(!plain ? kLog2e : scaled ? 1 : args->scale * kLog2e); }
    double natural() const { return !plain ? 1 : scaled ? kLn2 : args->scale; }

    bool any_global(int64_t begin, int64_t end) const { return global_count[end] > global_count[begin]; }
};

// As in attention.hpp, of what the mask leaves.
template <class A, class T> NF_INLINE KeyRange keys_of(const Scoring<A, T> &s, int64_t query) {
    const KeyRange range = keys_of(*s.args, query);
    return {larger(range.first, s.seen.first), smaller(range.last, s.seen.last)};
}
template <class A, class T> NF_INLINE KeyRange keys_of_any(const Scoring<A, T> &s, int64_t begin, int64_t end) {
    return {keys_of(s, begin).first, keys_of(s, end - 1).last};
}

// The keys of a query, globals among the others apart: [first, last).
template <class A, class T> NF_INLINE KeyRange range_of(const Scoring<A, T> &s, int64_t query) {
    const AttentionArgs &args = *s.args;
    if (s.global && s.global[query])
        return {0, args.global_rows ? smaller(args.keys, args.causal_high + query + 1) : 0};
    return keys_of(s, query);
}
// May the query see a global key, wherever it is?
template <class A, class T> NF_INLINE bool sees_global(const Scoring<A, T> &s, int64_t query, int64_t key) {
    return s.global[key] && key <= s.args->causal_high + query && (s.args->global_rows || !s.global[query]);
}

// Does the mask let one of the queries [query, query + rows) see one of the keys [begin, end)? With a dense mask the
// first row says yes.
template <class A, class T>
NF_INLINE bool mask_keeps_any(const Scoring<A, T> &s, int64_t query, int64_t rows, int64_t begin, int64_t end) {
    const AttentionPairs &mask = s.args->mask;
    for (int64_t i = 0; i < (mask.query == 0 ? 1 : rows); ++i) {
        const uint8_t *row = s.mask + (query + i) * mask.query;
        uint8_t any = 0;
        if (mask.key == 1)
            for (int64_t j = begin; j < end; ++j)
                any |= row[j];
        else
            for (int64_t j = begin; j < end; ++j)
                any |= row[j * mask.key];
        if (any)
            return true;
    }
    return false;
}
// ... all of them all of these keys?
template <class A, class T>
NF_INLINE bool mask_keeps_all(const Scoring<A, T> &s, int64_t query, int64_t rows, int64_t begin, int64_t end) {
    const AttentionPairs &mask = s.args->mask;
    for (int64_t i = 0; i < (mask.query == 0 ? 1 : rows); ++i) {
        const uint8_t *row = s.mask + (query + i) * mask.query;
        if (mask.key == 1) {
            if (memchr(row + begin, 0, size_t(end - begin)))
                return false;
        } else {
            for (int64_t j = begin; j < end; ++j)
                if (!row[j * mask.key])
                    return false;
        }
    }
    return true;
}

// What a strip of queries has to visit of the keys [begin, end): the next piece at or behind `begin`, which is a
// multiple of a panel or the end of the piece before. Empty: there is none. Panels between pieces have no pair that the
// window, global tokens and the mask leave. A panel that is there for global keys alone ends with the last of them.
template <class A, class T>
static KeyRange next_keys(const Scoring<A, T> &s, int64_t query, int64_t rows, int64_t begin, int64_t end) {
    constexpr int64_t NR = kTileColumns<A>;
    const AttentionArgs &args = *s.args;
    begin = round_up(begin, NR);
    if (begin >= end)
        return {end, end};
    const KeyRange range = keys_of_any(s, query, query + rows);
    int64_t first = larger(begin, range.first / NR * NR), limit = smaller(end, range.last);
    const bool see_all = s.global && args.global_rows && s.any_global(query, query + rows);
    const bool beyond_window = see_all || (s.global && s.any_global(begin, end));
    if (!beyond_window && !s.mask)
        return {first, limit};
    if (beyond_window) {
        first = begin;
        limit = smaller(end, smaller(args.keys, args.causal_high + query + rows));
    }
    const bool all_in_reach = see_all || !beyond_window; // before the mask
    auto in_window = [&](int64_t panel) { return panel < range.last && panel + NR > range.first; };
    auto needed = [&](int64_t panel) {
        const int64_t panel_end = smaller(panel + NR, limit);
        return (all_in_reach || in_window(panel) || s.any_global(panel, panel_end)) &&
               (!s.mask || mask_keeps_any(s, query, rows, panel, panel_end));
    };
    while (first < limit && !needed(first))
        first += NR;
    int64_t last = first;
    while (last < limit && needed(last))
        last += NR;
    const int64_t panel = last - NR;
    last = smaller(last, limit);
    if (first < last && !all_in_reach && !in_window(panel))
        while (last > panel + 1 && !s.global[last - 1])
            --last;
    return {first, last};
}
// All pieces and what lies between them.
template <class A, class T>
NF_INLINE KeyRange span_of_keys(const Scoring<A, T> &s, int64_t query, int64_t rows, int64_t begin, int64_t end) {
    KeyRange span = next_keys(s, query, rows, begin, end);
    if (s.global || s.mask)
        for (KeyRange next = span; next.first < next.last; next = next_keys(s, query, rows, next.last, end))
            span.last = next.last;
    return span;
}

// A bias is of T, or float beside a 16-bit T: f is called with a pointer to its row of this query, from key 0 on.
template <class A, class T, class F> NF_INLINE void with_bias_row(const Scoring<A, T> &s, int64_t query, F f) {
    const int64_t offset = query * s.args->bias.query;
    if constexpr (sizeof(T) == 2)
        if (s.args->bias.type == DType::f32)
            return f(static_cast<const float *>(s.bias) + offset);
    f(static_cast<const T *>(s.bias) + offset);
}

template <class A, class B> NF_INLINE Vec<A> load_strided(const B *x, int64_t stride, int n) {
    if (stride == 1)
        return load_some(x, n);
    if (stride == 0)
        return broadcast(A(load_one(x)));
    alignas(kVectorBytes) A lane[kLanes<A>] = {};
    for (int i = 0; i < n; ++i)
        lane[i] = A(load_one(x + i * stride));
    return load(lane);
}

template <class A, class T> NF_INLINE bool may_attend(const Scoring<A, T> &s, int64_t query, int64_t key) {
    const AttentionArgs &args = *s.args;
    const KeyRange range = range_of(s, query);
    const bool inside = key >= range.first && key < range.last;
    if (!inside && !(s.global && sees_global(s, query, key)))
        return false;
    if (s.mask && !s.mask[query * args.mask.query + key * args.mask.key])
        return false;
    bool allowed = true;
    if (s.bias)
        with_bias_row(s, query,
                      [&](auto *row) { allowed = A(load_one(row + key * args.bias.key)) != kMinusInfinity<A>; });
    return allowed;
}

// Softcap, bias and ALiBi for scores of one query, keys [key0, key0 + width). The row has room for whole vectors.
// `cap_slope`, if it is not null, gets the derivative of the softcap.
template <class A, class T>
static void change_scores(const Scoring<A, T> &s, int64_t query, int64_t key0, int64_t width, A *scores, A *cap_slope) {
    const AttentionArgs &args = *s.args;
    if (!s.scaled)
        for (int64_t j = 0; j < width; j += kLanes<A>)
            store(scores + j, load(scores + j) * A(args.scale));
    if (args.softcap != 0) {
        const A cap = A(args.softcap), inverse = A(1 / args.softcap);
        for (int64_t j = 0; j < width; j += kLanes<A>) {
            const Vec<A> t = tanh(load(scores + j) * inverse);
            store(scores + j, t * cap);
            if (cap_slope)
                store(cap_slope + j, A(1) - t * t);
        }
    }
    if (s.bias)
        with_bias_row(s, query, [&](auto *row) {
            row += key0 * args.bias.key;
            for_each_vector<A>(width, [&](int64_t j, int n) {
                const Vec<A> bias = load_strided<A>(row + j * args.bias.key, args.bias.key, n);
                // A score that is not finite must not bring a masked one back.
                store(scores + j, bias == kMinusInfinity<A> ? bias : load(scores + j) + bias);
            });
        });
    if (s.slope != 0) {
        const Vec<A> lanes = __builtin_convertvector(iota<A>(), Vec<A>);
        for (int64_t j = 0; j < width; j += kLanes<A>) {
            const Vec<A> distance = absolute<A>(lanes + A(key0 + j - query - args.diagonal));
            store(scores + j, fma(distance, broadcast(-s.slope), load(scores + j)));
        }
    }
}

// Minus infinity where the query may not look, and behind the last key up to full_width.
template <class A, class T>
NF_INLINE void mask_scores(const Scoring<A, T> &s, int64_t query, int64_t key0, int64_t width, int64_t full_width,
                           A *scores) {
    const AttentionArgs &args = *s.args;
    const KeyRange range = range_of(s, query);
    int64_t first = smaller(width, larger(0, range.first - key0)),
            last = larger(first, smaller(width, range.last - key0));
    auto hide = [&](int64_t begin, int64_t end) { // all but global keys
        if (s.global && begin < end && s.any_global(key0 + begin, key0 + smaller(width, end))) {
            for (int64_t j = begin; j < end; ++j)
                if (j >= width || !sees_global(s, query, key0 + j))
                    scores[j] = kMinusInfinity<A>;
            return;
        }
        for (int64_t j = begin / kLanes<A> * kLanes<A>; j < end; j += kLanes<A>) {
            const Vec<A> at = __builtin_convertvector(iota<A>(), Vec<A>) + A(j);
            const Vec<A> score = load(scores + j);
            store(scores + j, at < A(begin) || at >= A(end) ? score : broadcast(kMinusInfinity<A>));
        }
    };
    hide(0, first);
    hide(last, full_width);
    if (s.global) { // the mask below holds for all
        first = 0;
        last = width;
    }
    if (!s.mask)
        return;
    const uint8_t *row = s.mask + query * args.mask.query + key0 * args.mask.key;
    if (args.mask.key == 1)
        for (int64_t j = first; j < last; ++j)
            scores[j] = row[j] ? scores[j] : kMinusInfinity<A>;
    else
        for (int64_t j = first; j < last; ++j)
            scores[j] = row[j * args.mask.key] ? scores[j] : kMinusInfinity<A>;
}

// True if each of the queries [query, query + rows) may attend to each of the keys, a bias apart.
template <class A, class T>
NF_INLINE bool all_kept(const Scoring<A, T> &s, int64_t query, int64_t rows, int64_t key0, int64_t width) {
    if (s.global && !s.args->global_rows && s.any_global(query, query + rows))
        return false;
    return keys_of(s, query + rows - 1).first <= key0 && keys_of(s, query).last >= key0 + width &&
           (!s.mask || mask_keeps_all(s, query, rows, key0, key0 + width));
}

// of_head(args, batch, head), of pairs that are visited, summed over the heads; one counts for all where the pattern
// does not depend on the head.
template <class F> NF_INLINE double sum_over_heads(const AttentionArgs &args, F of_head) {
    if (!args.mask.data && !args.global)
        return args.batches * args.heads > 0 ? of_head(args, 0, 0) * double(args.batches * args.heads) : 0;
    double sum = 0;
    for (int64_t batch = 0; batch < args.batches; ++batch)
        for (int64_t head = 0; head < args.heads; ++head)
            sum += of_head(args, batch, head);
    return sum;
}

// factors[j] = 1 / (1 - p) where the probability of (query, key0 + j) is kept, else 0. Pairs are counted as elements
// of (heads, queries, keys). Writes whole vectors.
template <class A, class T, int MAX_WIDTH>
static void dropout_factors(const Scoring<A, T> &s, int64_t query, int64_t key0, int64_t width, A *factors) {
    const AttentionArgs &args = *s.args;
    alignas(kVectorBytes) uint32_t words[MAX_WIDTH + 2 * kWords + kLanes<A>];
    const int64_t element = (s.head * args.queries + query) * args.keys + key0;
    const int64_t block = element / 4, offset = element % 4, end = offset + round_up(width, kLanes<A>);
    for (int64_t i = 0; i < end; i += kWords)
        random_words(s.keys, block + i / 4, s.sample, args.dropout.step, words + i);
    const Vec<A> factor = broadcast(A(args.dropout.factor));
    for (int64_t j = 0; j < width; j += kLanes<A>)
        store(factors + j, kept(A(0), words + offset + j, args.dropout.limit) ? factor : Vec<A>{});
}

} // namespace nf::NUMFORMER_LEVEL
