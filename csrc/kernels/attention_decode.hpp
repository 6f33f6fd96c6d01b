// Attention of a few queries to many keys, as in decoding: every key and value is used a few times only, so time is
// that of reading them. Nothing is packed; K and V are read once, where they lie.
//
// The keys are cut into chunks of 512, a constant: threads share the chunks when there are few heads, and the chunks'
// sums are combined in their order, on one thread too, so that results do not depend on the number of threads. For a
// chunk, and all the queries of the heads that share its keys:
//   1. scores, a register of keys at a time: one accumulator a key along the dimension, then transposed and added up
//   2. the softmax of each row, relative to the chunk's own maximum
//   3. o = sum of p_j v_j, in registers over 32 keys
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

// scores[j] = q . k_j for `count` <= kLanes keys; q is padded with zeros to whole vectors.
template <class A, class T>
NF_INLINE Vec<A> dot_products(const A *q, const T *k, int64_t k_row, int64_t dim, int64_t count) {
    constexpr int W = kLanes<A>;
    const T *key[W];
    Vec<A> sum[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        key[i] = k + smaller(i, count - 1) * k_row; // keys behind the last are not used
        sum[i] = Vec<A>{};
    }
    for_each_vector<A>(dim, [&](int64_t d, int n) {
        const Vec<A> of_q = load(q + d);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
            sum[i] = fma(of_q, load_some(key[i] + d, n), sum[i]);
    });
    return sums_of_lanes<A>(sum);
}

// o[0 .. VECTORS * lanes) += sum over j of p[j] v_j.
template <class A, class T, int VECTORS>
NF_INLINE void add_values(const A *p, int64_t count, const T *v, int64_t v_row, A *o) {
    Vec<A> sum[VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i)
        sum[i] = load(o + i * kLanes<A>);
    for (int64_t j = 0; j < count; ++j) {
        const Vec<A> weight = broadcast(p[j]);
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i)
            sum[i] = fma(weight, load(v + j * v_row + i * kLanes<A>), sum[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i)
        store(o + i * kLanes<A>, sum[i]);
}
template <class A, class T>
NF_INLINE void add_all_values(const A *p, int64_t count, const T *v, int64_t v_row, int64_t dim, A *o) {
    constexpr int W = kLanes<A>;
    int64_t d = 0;
    for (; d + 8 * W <= dim; d += 8 * W)
        add_values<A, T, 8>(p, count, v + d, v_row, o + d);
    for (; d + 2 * W <= dim; d += 2 * W)
        add_values<A, T, 2>(p, count, v + d, v_row, o + d);
    for (; d < dim; d += W) {
        const int n = int(smaller(W, dim - d));
        Vec<A> sum = load(o + d);
        for (int64_t j = 0; j < count; ++j)
            sum = fma(broadcast(p[j]), load_some(v + j * v_row + d, n), sum);
        store(o + d, sum);
    }
}

// The queries of all heads that share the keys, times the factor of the scores, in rows of whole vectors.
template <class A> NF_INLINE int64_t query_stride(const AttentionArgs &args) { return round_up(args.dim, kLanes<A>); }
template <class A> NF_INLINE int64_t chunk_scratch(const KvHead &of) {
    // The rows of queries and of scores, and one more query plus v where there are relative positions.
    return of.group * of.args->queries * (query_stride<A>(*of.args) + kRowStride) +
           (of.args->relative.r ? query_stride<A>(*of.args) : 0);
}

// A query plus a bias of its head, times the factor of the scores; no bias if it is null. Writes `dim` elements.
template <class A, class T>
NF_INLINE void scale_query(const T *query, int64_t dim, const double *bias, A factor, A *to) {
    if (bias) {
        add_to_queries(query, 1, dim, 0, bias, to);
        for (int64_t d = 0; d < dim; ++d)
            to[d] *= factor;
    } else {
        for_each_vector<A>(dim, [&](int64_t d, int n) { store_n(to + d, load_some(query + d, n) * factor, n); });
    }
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
        store(to, load(to) + dot_products<A, T>(q, r, -row, args.dim, smaller(kLanes<A>, end - key)));
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
    const AttentionRelative &relative = args.relative;
    memset(q, 0, size_t((rows + (relative.r ? 1 : 0)) * stride) * sizeof(A));
    const int64_t first_head = of.head * of.group, width = range.last - range.first;
    const A factor = A(args.plain ? args.scale * kLog2e : args.scale);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t head = first_head + r / args.queries;
        scale_query<A, T>(head_of<T>(args.q, of.batch, head) + r % args.queries * args.q.row, args.dim,
                          relative.r ? relative.bias_u + head * args.dim : nullptr, factor, q + r * stride);
    }
    const T *k = head_of<T>(args.k, of.batch, of.head) + range.first * args.k.row;
    for (int64_t j0 = 0; j0 < width; j0 += kKeysAtOnce)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = j0; j < smaller(width, j0 + kKeysAtOnce); j += kLanes<A>)
                store(scores + r * kRowStride + j, dot_products<A, T>(q + r * stride, k + j * args.k.row, args.k.row,
                                                                      args.dim, smaller(kLanes<A>, width - j)));
    const int64_t full_width = round_up(width, kLanes<A>);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t query = r % args.queries, head = first_head + r / args.queries;
        const Scoring<A, T> scoring = Scoring<A, T>::of(args, of.batch, head);
        A *row = scores + r * kRowStride, maximum = kMinusInfinity<A>, sum = 0;
        if (relative.r) {
            A *q_relative = q + rows * stride;
            scale_query<A, T>(head_of<T>(args.q, of.batch, head) + query * args.q.row, args.dim,
                              relative.bias_v + head * args.dim, factor, q_relative);
            add_relative_row<A, T>(args, head, query, range, q_relative, row);
        }
        if (scoring.plain) {
            if (width != full_width || !all_kept(scoring, query, 1, range.first, width))
                mask_scores(scoring, query, range.first, width, full_width, row);
            softmax_row<A, true>(row, full_width, A(1), maximum, sum, row);
        } else {
            softmax_changed(scoring, query, range.first, width, row, maximum, sum, row);
        }
        partials[r * size + o_size] = maximum;
        partials[r * size + o_size + 1] = sum;
    }
    const T *v = head_of<T>(args.v, of.batch, of.head) + range.first * args.v.row;
    for (int64_t j = 0; j < width; j += kKeysAtOnce)
        for (int64_t r = 0; r < rows; ++r)
            add_all_values<A, T>(scores + r * kRowStride + j, smaller(kKeysAtOnce, width - j), v + j * args.v.row,
                                 args.v.row, args.value_dim, partials + r * size);
    // 0 x NaN is NaN: where a sum is not finite, add again what the query may see, and nothing else.
    for (int64_t r = 0; r < rows; ++r) {
        A *o = partials + r * size;
        if (all_finite<A>(o, 1, args.value_dim, 0))
            continue;
        const Scoring<A, T> scoring = Scoring<A, T>::of(args, of.batch, first_head + r / args.queries);
        memset(o, 0, size_t(o_size) * sizeof(A));
        for (int64_t j = 0; j < width; ++j)
            if (may_attend(scoring, r % args.queries, range.first + j))
                add_all_values<A, T>(scores + r * kRowStride + j, 1, v + j * args.v.row, args.v.row, args.value_dim, o);
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
