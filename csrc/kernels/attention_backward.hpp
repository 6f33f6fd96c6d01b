// What the backward of attention and the gradient of its bias share: operands packed once a head, and strips of P and
// dS = P (dP - delta), computed from them again.
#pragma once
#include "kernels/attention_ahead.hpp"
#include "kernels/attention_relative.hpp"
#include "kernels/attention_scores.hpp"

#include <math.h>

namespace nf::NUMFORMER_LEVEL {

constexpr int kBackwardKeys = 256; // keys in a block
constexpr int kGap = 16;           // rows 1 KiB apart would share cache sets
constexpr int kGradientStride = kBackwardKeys + kGap;
static_assert(kGap >= kTileRows, "what a strip of relative positions reads beside its rows lies in the gaps");

// Hands out parts of one allocation.
template <class A> struct Arena {
    A *next;
    A *take(int64_t count) {
        A *part = next;
        next += round_up(count, kLanes<A>);
        return part;
    }
};
template <class A> NF_INLINE int64_t part(int64_t count) { return round_up(count, kLanes<A>); }

// A gradient from the rows in which it was summed.
template <class A, class T>
static void write_rows(const A *sums, int64_t sums_row, int64_t rows, int64_t columns, T *to, int64_t to_row) {
    for (int64_t i = 0; i < rows; ++i)
        for_each_vector<A>(columns, [&](int64_t d, int n) {
            store_some(to + i * to_row + d, load_some(sums + i * sums_row + d, n), n);
        });
}

// Flags, one a block of rows: 1 where all elements are finite, else 0.
template <class A> NF_INLINE int64_t flags_size(int64_t rows, int64_t block) { return part<A>(ceil_div(rows, block)); }

// The keys [first, first + count) of one head; first is a multiple of kBackwardKeys.
template <class E, class T> struct KeySide {
    typedef Acc<E> A;
    const T *k, *v; // of key 0
    int64_t first;
    const E *keys_transposed, *values_transposed;
    const A *flags;
    Panels<E> rows;

    static int64_t size(const AttentionArgs &args, int64_t count) {
        const int64_t padded = round_up(count, kTileColumns<E>);
        return part<A>(padded * steps_of<E>(args.dim)) + part<A>(padded * steps_of<E>(args.value_dim)) +
               flags_size<A>(count, kBackwardKeys) +
               part<A>(lies_in_panels<E, T>(args.dim) ? 0 : panels_size<E>(count, args.dim));
    }
    void pack(const AttentionArgs &args, int64_t batch, int64_t kv_head, int64_t first_key, int64_t count,
              Arena<A> arena) {
        const int64_t padded = round_up(count, kTileColumns<E>);
        k = head_of<T>(args.k, batch, kv_head);
        v = head_of<T>(args.v, batch, kv_head);
        first = first_key;
        const T *k_rows = k + first * args.k.row, *v_rows = v + first * args.v.row;
        E *kt = reinterpret_cast<E *>(arena.take(padded * steps_of<E>(args.dim)));
        E *vt = reinterpret_cast<E *>(arena.take(padded * steps_of<E>(args.value_dim)));
        pack_keys<E, T>(k_rows, count, args.dim, args.k.row, kt);
        pack_keys<E, T>(v_rows, count, args.value_dim, args.v.row, vt);
        keys_transposed = kt;
        values_transposed = vt;
        A *finite_flags = arena.take(ceil_div(count, kBackwardKeys));
        for (int64_t j = 0; j < count; j += kBackwardKeys) {
            const int64_t keys = smaller(kBackwardKeys, count - j);
            const bool good = all_finite<A>(k_rows + j * args.k.row, keys, args.dim, args.k.row) &&
                              all_finite<A>(v_rows + j * args.v.row, keys, args.value_dim, args.v.row);
            finite_flags[j / kBackwardKeys] = good ? A(1) : A(0);
        }
        flags = finite_flags;
        rows = as_panels<E, T>(k_rows, count, args.dim, args.k.row, reinterpret_cast<E *>(arena.next));
    }
    // Of the block that begins with key0.
    bool finite(int64_t key0) const { return flags[(key0 - first) / kBackwardKeys] != 0; }
};

// The relative positions of one query head: see attention_relative.hpp. Nothing where there are none.
template <class A, class T> struct RelativeSide {
    const T *r;          // column 0
    const A *transposed; // right operand of scores
    Panels<A> columns;   // a row a column: right operand of dq
    const double *bias_u, *bias_v;
    bool finite = true;

    static int64_t size(const AttentionArgs &args) {
        return part<A>(relative_panels_size<A>(args)) + part<A>(!args.relative.r || lies_in_panels<A, T>(args.dim)
                                                                    ? 0
                                                                    : panels_size<A>(args.relative.count, args.dim));
    }
    void pack(const AttentionArgs &args, int64_t head, Arena<A> arena) {
        const AttentionRelative &relative = args.relative;
        if (!relative.r)
            return;
        r = first_column<T>(relative, head);
        A *panels = arena.take(relative_panels_size<A>(args));
        pack_relative<A, T>(args, head, panels);
        transposed = panels;
        columns = as_panels<A, T>(r, relative.count, args.dim, -relative.row, arena.next);
        bias_u = relative.bias_u + head * args.dim;
        bias_v = relative.bias_v + head * args.dim;
        double sum = 0; // x * 0 is 0 for finite x
        for (int64_t d = 0; d < args.dim; ++d)
            sum += bias_u[d] * 0 + bias_v[d] * 0;
        finite = sum == 0 && all_finite<A>(r, relative.count, args.dim, -relative.row);
    }
};

// The sink is a score whose probability is e^(sink - lse), and whose value is 0: dP - delta is -delta.
template <class A> static double sink_gradient(double sink, const A *lse, const A *delta, int64_t queries) {
    double sum = 0;
    for (int64_t i = 0; i < queries; ++i)
        if (lse[i] != kMinusInfinity<A>)
            sum -= ::exp(sink - double(lse[i])) * double(delta[i]);
    return sum;
}

// The queries [first, first + count) of one head; first is a multiple of kQueries. With relative positions q is
// q + u, and q + v in strips stands beside it.
template <class E, class T> struct QuerySide {
    typedef Acc<E> A;
    const T *q, *dout; // of query 0
    int64_t first;
    const E *q_strips, *dout_strips;
    const A *relative_strips, *flags;
    Panels<E> queries, douts;
    A *delta, *shift; // dout . out - dlse, and the log-sum-exp in the units of the scores; of query `first`
    Scoring<A, T> scoring;
    const RelativeSide<A, T> *relative;

    static bool copies_queries(const AttentionArgs &args) { return args.relative.r || !lies_in_panels<E, T>(args.dim); }
    static int64_t size(const AttentionArgs &args, int64_t count) {
        const int64_t strips = part<A>(strips_size<E>(count, args.dim));
        return strips + part<A>(strips_size<E>(count, args.value_dim)) + 2 * part<A>(count) +
               flags_size<A>(count, kQueries<E>) + part<A>(copies_queries(args) ? panels_size<E>(count, args.dim) : 0) +
               part<A>(lies_in_panels<E, T>(args.value_dim) ? 0 : panels_size<E>(count, args.value_dim)) +
               (args.relative.r ? strips + part<A>(kQueries<E> * args.dim) : 0);
    }
    void pack(const AttentionArgs &args, const RelativeSide<A, T> &of_relative, int64_t batch, int64_t head,
              int64_t first_query, int64_t count, Arena<A> arena) {
        q = head_of<T>(args.q, batch, head);
        dout = head_of<T>(args.dout, batch, head);
        first = first_query;
        relative = &of_relative;
        scoring = Scoring<A, T>::of(args, batch, head);
        scoring.narrow();
        if (kPairs<E>)
            scoring.leave_queries();
        const T *q_rows = q + first * args.q.row, *dout_rows = dout + first * args.dout.row;
        E *qs = reinterpret_cast<E *>(arena.take(strips_size<E>(count, args.dim)));
        E *ds = reinterpret_cast<E *>(arena.take(strips_size<E>(count, args.value_dim)));
        pack_strips<E, T>(dout_rows, count, args.value_dim, args.dout.row, A(1), ds);
        q_strips = qs;
        dout_strips = ds;
        A *deltas = arena.take(count), *shifts = arena.take(count);
        A *finite_flags = arena.take(ceil_div(count, kQueries<E>));
        E *copy = reinterpret_cast<E *>(arena.take(copies_queries(args) ? panels_size<E>(count, args.dim) : 0));
        bool packed = false;
        if constexpr (!kPairs<E>)
            if (args.relative.r) {
                A *rs = arena.take(strips_size<A>(count, args.dim));
                pack_relative_queries(args, q_rows, count, qs, rs, copy, arena.take(kBlockQueries * args.dim));
                relative_strips = rs;
                packed = true;
            }
        if (!packed) {
            pack_strips<E, T>(q_rows, count, args.dim, args.q.row, scoring.factor(), qs);
            queries = as_panels<E, T>(q_rows, count, args.dim, args.q.row, copy);
        }
        douts = as_panels<E, T>(dout_rows, count, args.value_dim, args.dout.row, reinterpret_cast<E *>(arena.next));
        delta = deltas;
        shift = shifts;
        flags = finite_flags;

        const T *out = head_of<T>(args.out, batch, head) + first * args.out.row;
        const int64_t lse_row = (batch * args.heads + head) * args.lse_row + first;
        const A *lse = static_cast<const A *>(args.lse) + lse_row;
        const A *dlse = args.dlse ? static_cast<const A *>(args.dlse) + lse_row : nullptr;
        const double unit = scoring.plain ? kLog2e : 1;
        for (int64_t i0 = 0; i0 < count; i0 += kQueries<E>) {
            const int64_t end = smaller(count, i0 + kQueries<E>);
            A not_finite = 0;
            for (int64_t i = i0; i < end; ++i) {
                Vec<A> sum = {};
                for_each_vector<A>(args.value_dim, [&](int64_t d, int n) {
                    sum = fma(load_some(dout_rows + i * args.dout.row + d, n), load_some(out + i * args.out.row + d, n),
                              sum);
                });
                deltas[i] = reduce_add<A>(sum) - (dlse ? dlse[i] : A(0));
                shifts[i] = A(double(lse[i]) * unit);
                not_finite += deltas[i] * 0 + (lse[i] == kMinusInfinity<A> ? A(0) : lse[i] * 0);
            }
            const bool good = not_finite == 0 && relative->finite &&
                              all_finite<A>(q_rows + i0 * args.q.row, end - i0, args.dim, args.q.row) &&
                              all_finite<A>(dout_rows + i0 * args.dout.row, end - i0, args.value_dim, args.dout.row);
            finite_flags[i0 / kQueries<E>] = good ? A(1) : A(0);
        }
        if (args.dsinks) {
            double &sum = args.dsinks[batch * args.heads + head];
            sum = (first == 0 ? 0.0 : sum) + sink_gradient(args.sinks[head], lse, delta, count);
        }
    }
    // Of the block that begins with query0.
    bool finite(int64_t query0) const { return flags[(query0 - first) / kQueries<E>] != 0; }

  private:
    // q + u in strips and in panels (`copy`), q + v in strips, block by block through `rows`.
    void pack_relative_queries(const AttentionArgs &args, const T *q_rows, int64_t count, A *u_strips, A *v_strips,
                               A *copy, A *rows) {
        constexpr int64_t NR = kTileColumns<A>;
        for (int64_t i0 = 0; i0 < count; i0 += kBlockQueries) {
            const int64_t n = smaller(kBlockQueries, count - i0);
            const T *from = q_rows + i0 * args.q.row;
            add_to_queries(from, n, args.dim, args.q.row, relative->bias_v, rows);
            pack_strips<A, A>(rows, n, args.dim, args.dim, scoring.factor(), v_strips + i0 * args.dim);
            add_to_queries(from, n, args.dim, args.q.row, relative->bias_u, rows);
            pack_strips<A, A>(rows, n, args.dim, args.dim, scoring.factor(), u_strips + i0 * args.dim);
            for (int64_t j = 0; j < args.dim; j += NR)
                pack_straight<A, A>(n, smaller(NR, args.dim - j), NR, rows + j, args.dim, copy + j * count + i0 * NR,
                                    NR);
        }
        queries = {copy, NR, count * NR};
    }
};

// All heads of a call packed at once, and its blocks as tasks: whichever thread is free takes the next.
template <class E, class T> struct PackedHeads {
    typedef Acc<E> A;
    Sequences all;
    int64_t kv_heads, heads;
    Scratch<KeySide<E, T>> keys;
    Scratch<QuerySide<E, T>> queries;
    bool any_relative;
    Scratch<RelativeSide<A, T>> relatives; // of each sequence the heads, for all its samples; one that is none else
    Scratch<int64_t> key_memory, query_memory, relative_memory; // where each part begins
    Scratch<A> memory;

    explicit PackedHeads(const Sequences &sequences)
        : all(sequences), kv_heads(all.kv_heads()), heads(all.heads()), keys(kv_heads), queries(heads),
          any_relative(has_relative()), relatives(relative_heads()), key_memory(kv_heads), query_memory(heads),
          relative_memory(relative_heads()), memory(lay_out()) {}

    bool pack() {
        if (!keys || !queries || !relatives || !key_memory || !query_memory || !relative_memory || !memory)
            return false;
        parallel_tasks(relative_heads(), [&](int64_t index) {
            const AttentionArgs &args = all.data[any_relative ? index / all.data[0].heads : 0];
            relatives.data[index] = {};
            relatives.data[index].pack(args, any_relative ? index % args.heads : 0,
                                       Arena<A>{memory.data + relative_memory.data[index]});
        });
        parallel_tasks(kv_heads + heads, [&](int64_t index) {
            if (index < kv_heads) {
                const KvHead of = find_kv_head(all, index);
                keys.data[index].pack(*of.args, of.batch, of.head, 0, of.args->keys,
                                      Arena<A>{memory.data + key_memory.data[index]});
            } else {
                index -= kv_heads;
                int64_t s = 0;
                while (s + 1 < all.count && all.data[s + 1].first_head <= index)
                    ++s;
                const AttentionArgs &args = all.data[s];
                const int64_t batch = (index - args.first_head) / args.heads,
                              head = (index - args.first_head) % args.heads;
                queries.data[index].pack(args, relatives.data[any_relative ? s * args.heads + head : 0], batch, head, 0,
                                         args.queries, Arena<A>{memory.data + query_memory.data[index]});
            }
        });
        return true;
    }
    const KeySide<E, T> &keys_of(const KvHead &of) const {
        return keys.data[of.args->first_kv_head + of.batch * of.args->kv_heads + of.head];
    }
    const QuerySide<E, T> &queries_of(const AttentionArgs &args, int64_t batch, int64_t head) const {
        return queries.data[args.first_head + batch * args.heads + head];
    }

    // f(kv_head, first key)
    template <class F> void for_each_key_block(F f) const {
        int64_t most = 0;
        for (int64_t s = 0; s < all.count; ++s)
            most = larger(most, ceil_div(all.data[s].keys, kBackwardKeys));
        parallel_tasks(kv_heads * most, [&](int64_t task) {
            const KvHead of = find_kv_head(all, task % kv_heads);
            if (task / kv_heads * kBackwardKeys < of.args->keys)
                f(of, task / kv_heads * kBackwardKeys);
        });
    }
    // f(kv_head, head, first query)
    template <class F> void for_each_query_block(F f) const {
        int64_t most = 0;
        for (int64_t s = 0; s < all.count; ++s)
            most = larger(most, ceil_div(all.data[s].queries, kQueries<E>));
        parallel_tasks(kv_heads * most, [&](int64_t task) {
            const KvHead of = find_kv_head(all, task % kv_heads);
            if (task / kv_heads * kQueries<E> < of.args->queries)
                for (int64_t head = of.head * of.group; head < (of.head + 1) * of.group; ++head)
                    f(of, head, task / kv_heads * kQueries<E>);
        });
    }

  private:
    bool has_relative() const {
        bool any = false;
        for (int64_t s = 0; s < all.count; ++s)
            any = any || all.data[s].relative.r;
        return any;
    }
    int64_t relative_heads() const { return any_relative ? all.count * all.data[0].heads : 1; }
    int64_t lay_out() {
        int64_t size = 0;
        if (!key_memory || !query_memory || !relative_memory)
            return 0;
        for (int64_t kv = 0; kv < kv_heads; ++kv) {
            key_memory.data[kv] = size;
            const AttentionArgs &args = *find_kv_head(all, kv).args;
            size += KeySide<E, T>::size(args, args.keys);
        }
        for (int64_t s = 0, head = 0; s < all.count; ++s)
            for (int64_t i = 0; i < all.data[s].batches * all.data[s].heads; ++i) {
                query_memory.data[head++] = size;
                size += QuerySide<E, T>::size(all.data[s], all.data[s].queries);
            }
        for (int64_t index = 0; index < relative_heads(); ++index) {
            relative_memory.data[index] = size;
            size += any_relative ? RelativeSide<A, T>::size(all.data[index / all.data[0].heads]) : 0;
        }
        return size;
    }
};

// Scores of one query become P, dP becomes dS, times scale. Plain scores, which times `unit` are in units of log 2; it
// is 1 but for pairs, whose P is going to be rounded.
template <class A, bool kPairsOfBfloat16>
NF_INLINE void differentiate_row(int64_t width, A unit, A shift, A delta, A scale, A *scores, A *gradient) {
    const Vec<A> shifts = broadcast(shift), mean = broadcast(delta);
    for (int64_t j = 0; j < width; j += kLanes<A>) {
        const Vec<A> score = load(scores + j);
        const Vec<A> p = exp2_nonpositive<A>(kPairsOfBfloat16 ? fma(score, broadcast(unit), -shifts) : score - shifts);
        store(scores + j, p);
        store(gradient + j, p * (load(gradient + j) - mean) * scale);
    }
}

// The same for scores that are not plain. With dropout's factors f, P becomes f P and dS = P (f dP - delta).
// `through_cap`: dS by what comes before the softcap, the product of query and key.
template <class A, class T>
static void differentiate_changed_row(const Scoring<A, T> &scoring, int64_t query, int64_t key0, int64_t width,
                                      bool through_cap, A shift, A delta, A scale, A *scores, A *gradient) {
    const int64_t full_width = round_up(width, kLanes<A>);
    alignas(kVectorBytes) A cap_slope[kBackwardKeys], factors[kBackwardKeys];
    through_cap = through_cap && scoring.args->softcap != 0;
    change_scores<A, T>(scoring, query, key0, width, scores, through_cap ? cap_slope : nullptr);
    mask_scores(scoring, query, key0, width, full_width, scores);
    const bool drop = scoring.args->dropout.limit != 0;
    if (drop)
        dropout_factors<A, T, kBackwardKeys>(scoring, query, key0, width, factors);
    for (int64_t j = 0; j < full_width; j += kLanes<A>) {
        const Vec<A> p = exp2_nonpositive<A>((load(scores + j) - shift) * A(kLog2e));
        Vec<A> dp = load(gradient + j), dropped = p;
        if (drop) {
            dp *= load(factors + j);
            dropped *= load(factors + j);
        }
        Vec<A> ds = p * (dp - delta) * scale;
        if (through_cap)
            ds *= load(cap_slope + j);
        store(scores + j, dropped);
        store(gradient + j, ds);
    }
}

// P and dS of the strip of queries [query, query + rows) and the keys [key0, key0 + width), written in whole vectors.
// `through_cap`: see above; dS is multiplied by `scale`. `band`: kBandSize, for relative positions.
template <class E, class T>
NF_INLINE void differentiate_strip(const AttentionArgs &args, const KeySide<E, T> &keys, const QuerySide<E, T> &queries,
                                   int64_t query, int64_t rows, int64_t key0, int64_t width, bool through_cap,
                                   Acc<E> scale, Acc<E> *scores, Acc<E> *gradient, Acc<E> *band, Ahead &ahead) {
    typedef Acc<E> A;
    constexpr int64_t NR = kTileColumns<E>;
    const Scoring<A, T> &scoring = queries.scoring;
    const int64_t full_width = round_up(width, kLanes<A>), strip = query - queries.first, panel = key0 - keys.first;
    const int64_t steps = steps_of<E>(args.dim), value_steps = steps_of<E>(args.value_dim);
    const E *q = queries.q_strips + strip / kStripRows<E> * strip_size<E>(args.dim);
    const E *dout = queries.dout_strips + strip / kStripRows<E> * strip_size<E>(args.value_dim);
    Ahead pairs;
    fetch_pairs(scoring, query, rows, key0, width, pairs);
    for (int64_t j = 0; j < width; j += NR) {
        multiply_ahead<E, Strip<E>>(pairs.any() ? pairs : ahead, steps, rows, width - j, q,
                                    keys.keys_transposed + (panel + j) * steps, NR, scores + j, kGradientStride,
                                    Store::write);
        multiply_ahead<E, Strip<E>>(ahead, value_steps, rows, width - j, dout,
                                    keys.values_transposed + (panel + j) * value_steps, NR, gradient + j,
                                    kGradientStride, Store::write);
    }
    if (args.relative.r)
        add_relative(args, queries.relative_strips + strip * args.dim, queries.relative->transposed, query, rows, key0,
                     width, band, scores, kGradientStride);
    const bool kept = width == full_width && all_kept(scoring, query, rows, key0, width);
    for (int64_t i = 0; i < rows; ++i) {
        A *row = scores + i * kGradientStride, *row_gradient = gradient + i * kGradientStride;
        const A shift = queries.shift[strip + i], delta = queries.delta[strip + i];
        if (shift == kMinusInfinity<A>) { // nothing to attend to
            memset(row, 0, size_t(full_width) * sizeof(A));
            memset(row_gradient, 0, size_t(full_width) * sizeof(A));
        } else if (scoring.plain) {
            if (!kept)
                mask_scores(scoring, query + i, key0, width, full_width, row);
            differentiate_row<A, kPairs<E>>(full_width, scoring.unit(), shift, delta, scale, row, row_gradient);
        } else {
            differentiate_changed_row(scoring, query + i, key0, width, through_cap, shift, delta, scale, row,
                                      row_gradient);
        }
    }
}

// P and dS of one pair, for inputs that are not finite: 0 x NaN is NaN, so masked pairs are left out one by one. False
// if the query does not see the key.
template <class A> struct PairGradient {
    A p, ds;
};
template <class E, class T>
static bool differentiate_pair(const AttentionArgs &args, const KeySide<E, T> &keys, const QuerySide<E, T> &queries,
                               int64_t i, int64_t j, bool through_cap, Acc<E> scale, PairGradient<Acc<E>> &result) {
    typedef Acc<E> A;
    Scoring<A, T> scoring = queries.scoring;
    scoring.scaled = true; // here
    const A shift = queries.shift[i - queries.first], delta = queries.delta[i - queries.first];
    if (shift == kMinusInfinity<A> || !may_attend(scoring, i, j))
        return false;
    const T *q = queries.q + i * args.q.row, *k = keys.k + j * args.k.row, *v = keys.v + j * args.v.row;
    const T *dout = queries.dout + i * args.dout.row;
    A dot = 0, dp = 0;
    if (args.relative.r) {
        const RelativeSide<A, T> &side = *queries.relative;
        const T *r = side.r - relative_column(args.relative, i, j) * args.relative.row;
        for (int64_t d = 0; d < args.dim; ++d)
            dot += (A(load_one(q + d)) + A(side.bias_u[d])) * A(load_one(k + d)) +
                   (A(load_one(q + d)) + A(side.bias_v[d])) * A(load_one(r + d));
    } else {
        for (int64_t d = 0; d < args.dim; ++d)
            dot += A(load_one(q + d)) * A(load_one(k + d));
    }
    for (int64_t d = 0; d < args.value_dim; ++d)
        dp += A(load_one(dout + d)) * A(load_one(v + d));
    alignas(kVectorBytes) A score[kLanes<A>] = {dot * scoring.factor()}, cap_slope[kLanes<A>] = {A(1)};
    A factors[kLanes<A>] = {A(1)};
    if (!scoring.plain)
        change_scores<A, T>(scoring, i, j, 1, score, through_cap && args.softcap != 0 ? cap_slope : nullptr);
    if (args.dropout.limit)
        dropout_factors<A, T, 1>(scoring, i, j, 1, factors);
    const A p = exp2(broadcast((score[0] - shift) * scoring.unit()))[0];
    result.p = p * factors[0];
    result.ds = p * (dp * factors[0] - delta) * scale * cap_slope[0];
    return true;
}

} // namespace nf::NUMFORMER_LEVEL
