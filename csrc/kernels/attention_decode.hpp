// Attention of a few queries to many keys, as in decoding: every key and value is used a few times only, so time is
// that of reading them. Nothing is packed; K and V are read once, where they lie.
//
// The keys are cut into chunks of 512, a constant: threads share the chunks when there are few heads, and the chunks'
// sums are combined in their order, on one thread too, so that results do not depend on the number of threads. For a
// chunk, and all the queries of the heads that share its keys:
//   1. scores, a register of keys at a time: one accumulator a key along the dimension, whose lanes are then added up
//   2. the softmax of each row, relative to the chunk's own maximum
//   3. o = sum of p_j v_j, in registers over 32 keys
// A processor reads some places of memory side by side faster than one, so 1 and 3 go through the parts of a chunk
// together. Up to four queries share each key and value that is loaded.
#pragma once
#include "kernels/attention_relative.hpp"
#include "kernels/attention_softmax.hpp"

namespace nf::NUMFORMER_LEVEL {

constexpr int64_t kFewQueries = 4;  // from 5 on a tile's rows pay for packing
constexpr int64_t kKeysAtOnce = 32; // 32 keys and values of 128 floats are 16 KiB each: in L1 for all rows

NF_INLINE bool has_few_queries(const AttentionArgs &args) { return args.queries <= kFewQueries; }

// What a chunk leaves for each row: o, then maximum and sum.
template <class A> NF_INLINE int64_t partial_size(const AttentionArgs &args) {
    return round_up(args.value_dim, kLanes<A>) + kLanes<A>;
}

// Keys [first, last) of the chunk that one of the queries may see; empty where there is none.
NF_INLINE KeyRange keys_of_chunk(const AttentionArgs &args, int64_t chunk) {
    KeyRange range = keys_of_any(args, 0, args.queries);
    if (args.global)
        range = {0, smaller(args.keys, args.causal_high + args.queries)};
    return {larger(chunk * kBlockKeys, range.first), smaller((chunk + 1) * kBlockKeys, range.last)};
}
NF_INLINE int64_t chunks_of(const AttentionArgs &args) { return ceil_div(args.keys, kBlockKeys); }

// Rows of T are loaded in units of so many vectors. bfloat16 is the upper half of a float, so a vector of them holds
// two of floats, its elements of even and of odd index: two instructions instead of two conversions. Queries and sums
// of values keep whole units in this order, which `to_units` makes and `from_units` undoes.
template <class T> constexpr int kUnit = std::is_same<T, bf16>::value ? 2 : 1;

template <class A, class T> NF_INLINE void load_unit(const T *p, Vec<A> (&x)[kUnit<T>]) {
    if constexpr (kUnit<T> == 2) {
        BitsVec bits; // rows begin at multiples of two bytes
        memcpy(&bits, p, sizeof bits);
        x[0] = (Vec<A>)(bits << 16);
        x[1] = (Vec<A>)(bits & 0xffff0000u);
    } else {
        x[0] = load(p);
    }
}
template <class A, class T> NF_INLINE int64_t in_units(int64_t dim) {
    return dim / (kUnit<T> * kLanes<A>)*(kUnit<T> * kLanes<A>);
}
// to[place of d] = from[d] for whole units, where `straight`, else the other way round; the rest is copied.
template <class A, class T, bool STRAIGHT> static void order_units(const A *from, int64_t dim, A *to) {
    constexpr int W = kLanes<A>, U = kUnit<T>;
    const int64_t whole = in_units<A, T>(dim);
    for (int64_t d = 0; d < dim; ++d) {
        const int64_t in_unit = d % (U * W);
        const int64_t place = d < whole ? d - in_unit + in_unit % U * W + in_unit / U : d;
        to[STRAIGHT ? place : d] = from[STRAIGHT ? d : place];
    }
}

// Parts of a chunk that are read side by side: what is best on Zen 4 and on Zen 3.
constexpr int kParts = kVectorBytes == 64 ? 2 : 4;
// So many accumulators leave registers for what is loaded.
constexpr int kSums = kVectorBytes == 64 ? 24 : 12;
// `most`, halved until one for each of `rows` fits.
constexpr int sums_of_row(int rows, int most) {
    while (rows * most > kSums)
        most /= 2;
    return most;
}

// sum[r] += q_r x, lane by lane, for what a key has behind its whole units. Not inline: the loop before needs all
// registers.
template <class A, class T>
__attribute__((noinline)) static void add_products(const A *q, int64_t q_row, int rows, const T *key, int64_t count,
                                                   Vec<A> *sum, int64_t sum_row) {
    for_each_vector<A>(count, [&](int64_t d, int n) {
        const Vec<A> x = load_some(key + d, n);
        for (int r = 0; r < rows; ++r)
            sum[r * sum_row] = fma(load(q + r * q_row + d), x, sum[r * sum_row]);
    });
}

// Registers for elements of queries while keys go by.
constexpr int kQueryVectors = kVectorBytes == 64 ? 8 : 4;
constexpr int vectors_of_query(int rows, int unit) {
    int most = kQueryVectors;
    while (rows * most > kQueryVectors && most > unit)
        most /= 2;
    return most;
}

// sum[r][i] += q_r . key i over dimensions from d on up to `whole`, as many registers at a time as VECTORS, then half
// as many. Keys are gone through as they lie in memory, so that the hardware runs ahead; elements of queries stay in
// registers meanwhile.
template <class A, class T, int ROWS, int KEYS, int VECTORS, class Key>
NF_INLINE void add_dimensions(const A *q, int64_t q_row, Key key, int64_t d, int64_t whole, Vec<A> (&sum)[ROWS][KEYS]) {
    constexpr int W = kLanes<A>, U = kUnit<T>;
    for (; d + VECTORS * W <= whole; d += VECTORS * W) {
        Vec<A> of_query[ROWS][VECTORS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                of_query[r][v] = load(q + r * q_row + d + v * W);
#pragma GCC unroll 16
        for (int i = 0; i < KEYS; ++i) {
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v += U) {
                Vec<A> x[U];
                load_unit<A, T>(key(i) + d + v * W, x);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                    for (int u = 0; u < U; ++u)
                        sum[r][i] = fma(of_query[r][v + u], x[u], sum[r][i]);
            }
            asm volatile("" ::: "memory"); // the compiler would read keys in turns
        }
    }
    if constexpr (VECTORS > U)
        add_dimensions<A, T, ROWS, KEYS, VECTORS / 2>(q, q_row, key, d, whole, sum);
}

// scores[r][key] = q_r . key for ROWS queries, in units, and a vector of keys: lane i is key t + i % each of part
// i / each, the parts `part` keys apart. CLAMPED: keys behind `last` are not read; what stands for their scores is not
// used.
template <class A, class T, int ROWS, int PARTS, bool CLAMPED>
static void compute_scores(const A *q, int64_t q_row, const T *k, int64_t k_row, int64_t dim, int64_t part, int64_t t,
                           int64_t last, A *scores) {
    constexpr int W = kLanes<A>, U = kUnit<T>, KEYS = sums_of_row(ROWS, W), EACH = W / PARTS;
    const int64_t whole = in_units<A, T>(dim);
    Vec<A> sum[ROWS][W];
    // The keys of a part share a register for their address: one for each key would leave none for anything else.
    const T *first[PARTS];
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; ++i)
        first[i] = k + (i * part + t) * k_row;
#pragma GCC unroll 16
    for (int i0 = 0; i0 < W; i0 += KEYS) {
        auto key = [&](int i) __attribute__((always_inline)) {
            if constexpr (CLAMPED)
                return k + smaller(last, (i0 + i) / EACH * part + t + (i0 + i) % EACH) * k_row;
            else
                return first[(i0 + i) / EACH] + (i0 + i) % EACH * k_row;
        };
        Vec<A> some[ROWS][KEYS];
#pragma GCC unroll 16
        for (int i = 0; i < KEYS; ++i)
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r)
                some[r][i] = Vec<A>{};
        add_dimensions<A, T, ROWS, KEYS, vectors_of_query(ROWS, U)>(q, q_row, key, 0, whole, some);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
            for (int i = 0; i < KEYS; ++i)
                sum[r][i0 + i] = some[r][i];
        if (whole < dim)
            for (int i = 0; i < KEYS; ++i)
                add_products(q + whole, q_row, ROWS, key(i) + whole, dim - whole, &sum[0][i0 + i], W);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
        alignas(kVectorBytes) A lane[W];
        store(lane, sums_of_lanes<A>(sum[r]));
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; ++i)
            memcpy(scores + r * kRowStride + i * part + t, lane + i * EACH, EACH * sizeof(A));
    }
}

// o[r] += sum over j of p[r][j] v_j for ROWS queries and PARTS times `count` values, `part` apart; o in units.
template <class A, class T, int ROWS, int PARTS, int VECTORS>
NF_INLINE void add_values(const A *p, int64_t part, int64_t count, const T *v, int64_t v_row, A *o, int64_t o_row) {
    constexpr int W = kLanes<A>, U = kUnit<T>;
    Vec<A> sum[ROWS][VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i)
            sum[r][i] = load(o + r * o_row + i * W);
    const T *value[PARTS];
#pragma GCC unroll 4
    for (int n = 0; n < PARTS; ++n)
        value[n] = v + n * part * v_row;
    for (int64_t t = 0; t < count; ++t)
#pragma GCC unroll 4
        for (int n = 0; n < PARTS; ++n) {
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; i += U) {
                Vec<A> x[U];
                load_unit<A, T>(value[n] + i * W, x);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                    for (int u = 0; u < U; ++u)
                        sum[r][i + u] = fma(broadcast(p[r * kRowStride + n * part + t]), x[u], sum[r][i + u]);
            }
            value[n] += v_row;
        }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i)
            store(o + r * o_row + i * W, sum[r][i]);
}
// Columns from d on, as many registers at a time as VECTORS, then half as many.
template <class A, class T, int ROWS, int PARTS, int VECTORS>
static void add_columns(const A *p, int64_t part, int64_t count, const T *v, int64_t v_row, int64_t dim, A *o,
                        int64_t o_row, int64_t d) {
    constexpr int W = kLanes<A>;
    for (; d + VECTORS * W <= dim; d += VECTORS * W)
        add_values<A, T, ROWS, PARTS, VECTORS>(p, part, count, v + d, v_row, o + d, o_row);
    if constexpr (VECTORS > kUnit<T>) {
        add_columns<A, T, ROWS, PARTS, VECTORS / 2>(p, part, count, v, v_row, dim, o, o_row, d);
    } else {
        for (; d < dim; d += W)
            for (int r = 0; r < ROWS; ++r) {
                Vec<A> sum = load(o + r * o_row + d);
                for (int64_t t = 0; t < count; ++t)
                    for (int64_t n = 0; n < PARTS; ++n) {
                        const int64_t j = n * part + t;
                        sum = fma(broadcast(p[r * kRowStride + j]),
                                  load_some(v + j * v_row + d, int(smaller(W, dim - d))), sum);
                    }
                store(o + r * o_row + d, sum);
            }
    }
}

// f(first row, how many) for up to four rows at a time; how many is a constant.
template <class F> NF_INLINE void for_some_rows(int64_t rows, F f) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
        f(r, std::integral_constant<int, 4>{});
    if (rows - r == 3)
        f(r, std::integral_constant<int, 3>{});
    if (rows - r == 2)
        f(r, std::integral_constant<int, 2>{});
    if (rows - r == 1)
        f(r, std::integral_constant<int, 1>{});
}

// The queries of all heads that share the keys, times the factor of the scores, in rows of whole vectors.
template <class A> NF_INLINE int64_t query_stride(const AttentionArgs &args) { return round_up(args.dim, kLanes<A>); }
template <class A> NF_INLINE int64_t chunk_scratch(const KvHead &of) {
    // The rows of queries and of scores, one more query plus v where there are relative positions, and one row to put
    // in order.
    return of.group * of.args->queries * (query_stride<A>(*of.args) + kRowStride) +
           (of.args->relative.r ? query_stride<A>(*of.args) : 0) +
           larger(query_stride<A>(*of.args), partial_size<A>(*of.args));
}

// A query plus a bias of its head, times the factor of the scores; no bias if it is null. Writes `dim` elements, in
// units; `row` has room for as many.
template <class A, class T>
NF_INLINE void scale_query(const T *query, int64_t dim, const double *bias, A factor, A *row, A *to) {
    if (bias) {
        add_to_queries(query, 1, dim, 0, bias, row);
        for (int64_t d = 0; d < dim; ++d)
            row[d] *= factor;
    } else {
        for_each_vector<A>(dim, [&](int64_t d, int n) { store_n(row + d, load_some(query + d, n) * factor, n); });
    }
    order_units<A, T, true>(row, dim, to);
}

// Relative positions: q . r of each pair of this query and the keys of `range` that the pattern allows. q: query + v.
template <class A, class T>
NF_INLINE void add_relative_row(const AttentionArgs &args, int64_t head, int64_t query, const KeyRange &range,
                                const A *q, A *scores) {
    KeyRange own = keys_of(args, query);
    if (args.global)
        own = {0, smaller(args.keys, args.causal_high + query + 1)};
    const int64_t end = smaller(own.last, range.last), row = args.relative.row;
    for (int64_t key = larger(own.first, range.first); key < end; key += kLanes<A>) {
        const T *r = first_column<T>(args.relative, head) - relative_column(args.relative, query, key) * row;
        A *to = scores + key - range.first; // what is written behind `end` is masked
        const Vec<A> of_keys = load(to);
        compute_scores<A, T, 1, 1, true>(q, 0, r, -row, args.dim, 0, 0, smaller(kLanes<A>, end - key) - 1, to);
        store(to, load(to) + of_keys);
    }
}

template <class A, class T> static void decode_chunk(const KvHead &of, int64_t chunk, A *scratch, A *partials) {
    const AttentionArgs &args = *of.args;
    const int64_t rows = of.group * args.queries, stride = query_stride<A>(args), size = partial_size<A>(args);
    const int64_t o_size = size - kLanes<A>;
    const KeyRange range = keys_of_chunk(args, chunk);
    memset(partials, 0, size_t(rows * size) * sizeof(A));
    if (range.first >= range.last) {
        for (int64_t r = 0; r < rows; ++r)
            partials[r * size + o_size] = kMinusInfinity<A>;
        return;
    }
    A *scores = scratch, *q = scratch + rows * kRowStride;
    A *spare = q + (rows + (args.relative.r ? 1 : 0)) * stride;
    const AttentionRelative &relative = args.relative;
    memset(q, 0, size_t((rows + (relative.r ? 1 : 0)) * stride) * sizeof(A));
    const int64_t first_head = of.head * of.group, width = range.last - range.first;
    const A factor = A(args.plain ? args.scale * kLog2e : args.scale);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t head = first_head + r / args.queries;
        scale_query<A, T>(head_of<T>(args.q, of.batch, head) + r % args.queries * args.q.row, args.dim,
                          relative.r ? relative.bias_u + head * args.dim : nullptr, factor, spare, q + r * stride);
    }
    const T *k = head_of<T>(args.k, of.batch, of.head) + range.first * args.k.row;
    constexpr int kKeyParts = kParts < kLanes<A> ? kParts : kLanes<A>, kStep = kLanes<A> / kKeyParts;
    const int64_t key_part = round_up(ceil_div(width, kKeyParts), kStep);
    for (int64_t t0 = 0; t0 < key_part; t0 += kKeysAtOnce / kKeyParts)
        for_some_rows(rows, [&](int64_t r, auto count) {
            for (int64_t t = t0; t < smaller(key_part, t0 + kKeysAtOnce / kKeyParts); t += kStep) {
                const bool clamped = (kKeyParts - 1) * key_part + t + kStep > width;
                (clamped ? compute_scores<A, T, count(), kKeyParts, true>
                         : compute_scores<A, T, count(), kKeyParts, false>)(q + r * stride, stride, k, args.k.row,
                                                                            args.dim, key_part, t, width - 1,
                                                                            scores + r * kRowStride);
            }
        });
    const int64_t full_width = round_up(width, kLanes<A>);
    auto query_of = [&](int64_t r) { return r % args.queries; };
    auto scoring_of = [&](int64_t r) { return Scoring<A, T>::of(args, of.batch, first_head + r / args.queries); };
    for (int64_t r = 0; r < rows; ++r) {
        A *row = scores + r * kRowStride;
        if (relative.r) {
            const int64_t head = first_head + r / args.queries;
            A *q_relative = q + rows * stride;
            scale_query<A, T>(head_of<T>(args.q, of.batch, head) + query_of(r) * args.q.row, args.dim,
                              relative.bias_v + head * args.dim, factor, spare, q_relative);
            add_relative_row<A, T>(args, head, query_of(r), range, q_relative, row);
        }
        prepare_scores(scoring_of(r), query_of(r), 1, range.first, width, row);
    }
    for (int64_t r0 = 0; r0 < rows; r0 += kLanes<A>) {
        const int64_t some = smaller(kLanes<A>, rows - r0);
        A maximum[kLanes<A>], sum[kLanes<A>] = {}, factors[kLanes<A>], *first = scores + r0 * kRowStride;
        for (A &of_row : maximum)
            of_row = kMinusInfinity<A>;
        if (args.plain)
            softmax_rows<A, Scores::log2>(first, some, full_width, A(1), maximum, sum, first, kRowStride, factors);
        else
            softmax_rows<A, Scores::natural>(first, some, full_width, A(kLog2e), maximum, sum, first, kRowStride,
                                             factors);
        for (int64_t r = r0; r < r0 + some; ++r) {
            partials[r * size + o_size] = maximum[r - r0];
            partials[r * size + o_size + 1] = sum[r - r0];
        }
    }
    if (args.dropout.limit)
        for (int64_t r = 0; r < rows; ++r)
            drop_probabilities(scoring_of(r), query_of(r), 1, range.first, width, scores + r * kRowStride,
                               scores + r * kRowStride, kRowStride);
    const T *v = head_of<T>(args.v, of.batch, of.head) + range.first * args.v.row;
    const int64_t part = width / kParts, rest = width - kParts * part;
    auto add = [&](int64_t first, auto parts, int64_t count) { // values first + t of each part, t < count
        for_some_rows(rows, [&](int64_t r, auto some) {
            constexpr int MOST = sums_of_row(some(), 8);
            add_columns<A, T, some(), parts(), MOST>(scores + r * kRowStride + first, part, count,
                                                     v + first * args.v.row, args.v.row, args.value_dim,
                                                     partials + r * size, size, 0);
        });
    };
    for (int64_t t = 0; t < part; t += kKeysAtOnce / kParts)
        add(t, std::integral_constant<int, kParts>{}, smaller(kKeysAtOnce / kParts, part - t));
    add(kParts * part, std::integral_constant<int, 1>{}, rest);
    for (int64_t r = 0; r < rows; ++r) {
        A *o = partials + r * size;
        memcpy(spare, o, size_t(o_size) * sizeof(A));
        order_units<A, T, false>(spare, args.value_dim, o);
        if (all_finite<A>(o, 1, args.value_dim, 0))
            continue;
        // 0 x NaN is NaN: where a sum is not finite, add again what the query may see, and nothing else.
        const Scoring<A, T> scoring = Scoring<A, T>::of(args, of.batch, first_head + r / args.queries);
        memset(o, 0, size_t(o_size) * sizeof(A));
        for (int64_t j = 0; j < width; ++j)
            if (may_attend(scoring, r % args.queries, range.first + j))
                for_each_vector<A>(args.value_dim, [&](int64_t d, int n) {
                    const Vec<A> weight = broadcast(scores[r * kRowStride + j]);
                    store(o + d, fma(weight, load_some(v + j * args.v.row + d, n), load(o + d)));
                });
    }
}

// Chunks in their order, begun by the sink.
template <class A, class T> static void combine_chunks(const KvHead &of, const A *partials, A *o) {
    const AttentionArgs &args = *of.args;
    const int64_t rows = of.group * args.queries, size = partial_size<A>(args), o_size = size - kLanes<A>;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t head = of.head * of.group + r / args.queries, query = r % args.queries;
        const Scoring<A, T> scoring = Scoring<A, T>::of(args, of.batch, head);
        const Start<A> start = start_of(scoring);
        A maximum = start.maximum;
        for (int64_t chunk = 0; chunk < chunks_of(args); ++chunk) {
            const A next = partials[(chunk * rows + r) * size + o_size];
            maximum = next > maximum ? next : maximum;
        }
        const A shift = maximum == kMinusInfinity<A> ? A(0) : maximum;
        auto weight = [&](A of_maximum) {
            return exp2_nonpositive<A>(broadcast((of_maximum - shift) * scoring.unit()))[0];
        };
        A sum = start.sum * weight(start.maximum);
        memset(o, 0, size_t(o_size) * sizeof(A));
        for (int64_t chunk = 0; chunk < chunks_of(args); ++chunk) {
            const A *partial = partials + (chunk * rows + r) * size;
            const A factor = weight(partial[o_size]);
            sum += partial[o_size + 1] * factor;
            for (int64_t d = 0; d < o_size; d += kLanes<A>)
                store(o + d, fma(load(partial + d), broadcast(factor), load(o + d)));
        }
        A *lse = static_cast<A *>(args.lse) + (of.batch * args.heads + head) * args.lse_row + query;
        finish_row(scoring, o, maximum, sum, head_of<T>(args.out, of.batch, head) + query * args.out.row, lse);
    }
}

// One key/value head on this thread.
template <class A, class T> static bool decode_head(const KvHead &of) {
    const int64_t of_chunk = of.group * of.args->queries * partial_size<A>(*of.args), chunks = chunks_of(*of.args);
    Scratch<A> memory((chunks + 1) * of_chunk + chunk_scratch<A>(of));
    if (!memory)
        return false;
    A *scratch = memory.data + (chunks + 1) * of_chunk;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        decode_chunk<A, T>(of, chunk, scratch, memory.data + chunk * of_chunk);
    combine_chunks<A, T>(of, memory.data, memory.data + chunks * of_chunk);
    return true;
}

// A thread gets at least 64 Ki elements: less is read faster than a fork and join takes.
NF_INLINE int64_t chunks_grain(int64_t chunks, int64_t elements) {
    return larger(1, ceil_div(chunks * 65536, larger(1, elements)));
}

// All heads of all sequences, chunks divided among threads.
template <class A, class T> static bool decode(const Sequences &all) {
    const int64_t kv_heads = all.kv_heads();
    Scratch<int64_t> first_of(2 * (kv_heads + 1)); // chunks and memory before each head
    if (!first_of)
        return false;
    int64_t *first_chunk = first_of.data, *first_memory = first_of.data + kv_heads + 1;
    int64_t chunks = 0, size = 0, scratch_size = 0, elements = 0;
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
        const KvHead of = find_kv_head(all, kv);
        first_chunk[kv] = chunks;
        first_memory[kv] = size;
        chunks += chunks_of(*of.args);
        size += (chunks_of(*of.args) + 1) * of.group * of.args->queries * partial_size<A>(*of.args);
        scratch_size = larger(scratch_size, chunk_scratch<A>(of));
        elements += of.args->keys * (of.args->dim + of.args->value_dim);
    }
    first_chunk[kv_heads] = chunks;
    Scratch<A> memory(size);
    if (!memory)
        return false;
    Failure failure;
    parallel_ranges(chunks, chunks_grain(chunks, elements), [&](int64_t begin, int64_t end) {
        Scratch<A> scratch(scratch_size);
        if (!scratch)
            return failure.set();
        int64_t kv = 0;
        for (int64_t index = begin; index < end; ++index) {
            while (first_chunk[kv + 1] <= index)
                ++kv;
            const KvHead of = find_kv_head(all, kv);
            const int64_t chunk = index - first_chunk[kv];
            decode_chunk<A, T>(of, chunk, scratch.data,
                               memory.data + first_memory[kv] +
                                   chunk * of.group * of.args->queries * partial_size<A>(*of.args));
        }
    });
    if (failure.happened)
        return false;
    parallel_ranges(kv_heads, chunks_grain(kv_heads, elements), [&](int64_t begin, int64_t end) {
        for (int64_t kv = begin; kv < end; ++kv) {
            const KvHead of = find_kv_head(all, kv);
            const int64_t of_chunk = of.group * of.args->queries * partial_size<A>(*of.args);
            A *partials = memory.data + first_memory[kv];
            combine_chunks<A, T>(of, partials, partials + chunks_of(*of.args) * of_chunk);
        }
    });
    return true;
}

} // namespace nf::NUMFORMER_LEVEL
