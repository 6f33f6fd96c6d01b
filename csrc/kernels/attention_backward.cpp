// Exact attention, backward (Dao, "FlashAttention-2", 2023, algorithm 2): nothing but the log-sum-exp was kept, P is
// computed again.
//
// With delta_i = dout_i . out_i, for a block of 256 keys and a block of 112 queries:
//   1. S = Q K^T, dP = dO V^T                      (strips of 14 queries; K and V transposed once a head into panels)
//   2. P = 2^(S - lse), dS = scale * P (dP - delta)
//   3. dQ += dS K                                  (rows of dS)
//   4. dV += P^T dO,  dK += dS^T Q                 (columns of P and dS: a broadcast costs the same along rows and
//   columns)
// P and dS of a block are 112 x 256 floats = 112 KiB each, in L2. Q, K and dO are read where they lie.
//
// Queries and keys are packed a few thousand at a time, so that scratch does not grow with the sequence.
//
// Types: as in attention.cpp. P and dS are rounded to pairs of bfloat16 for 3 and 4: along keys for 3, along queries
// for 4, where matrix registers want the transpose besides, a key's queries as a row.
//
// Each gradient is summed in a fixed order: dQ over key blocks, dK and dV over heads and query blocks. With enough
// heads one thread does all of a key/value head; with few, one pass divides the key blocks (dK, dV) and a second one
// the query blocks (dQ), computing P twice: 7 products instead of 5, the same bits.
#include "kernels/attention_backward.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// P and dS of a block, the latter behind a gap, and the band of relative positions. Of pairs: dS of a strip in rows; P
// and dS of the block, pairs of queries in rows; the same transposed, for one strip of keys.
template <class E> struct Blocks {
    typedef Acc<E> A;
    static constexpr int64_t kBlock = kQueries<E> * kGradientStride, kPairRows = kQueries<E> / 2;
    static constexpr int64_t kRowOfPairs = kBackwardKeys / 2 + kGap; // of dS
    static constexpr int64_t kRowOfKey = kPairRows + kGap;           // of the transposes
    static constexpr int64_t kStripOfPairs = kPairs<E> ? kStripRows<E> * kRowOfPairs : 0;
    static constexpr int64_t kBlockOfPairs = kPairs<E> ? kPairRows * kGradientStride : 0;
    static constexpr int64_t kTransposed = kByMatrices<E> ? kStripRows<E> * kRowOfKey : 0;
    static constexpr int64_t kSize = 2 * kBlock + kGap + kBandSize + kStripOfPairs + 2 * (kBlockOfPairs + kTransposed);
    A *p, *ds, *band;
    E *ds_rows, *p_pairs, *ds_pairs, *p_transposed, *ds_transposed;
    explicit Blocks(A *memory)
        : p(memory), ds(p + kBlock + kGap), band(ds + kBlock), ds_rows(reinterpret_cast<E *>(band + kBandSize)),
          p_pairs(ds_rows + kStripOfPairs), ds_pairs(p_pairs + kBlockOfPairs), p_transposed(ds_pairs + kBlockOfPairs),
          ds_transposed(p_transposed + kTransposed) {}
};

// Packed at once: the fewer, the more often the others are packed again, and 16 blocks make that a per mille.
constexpr int64_t kSegmentKeys = 16 * kBackwardKeys;
template <class E> constexpr int64_t kSegmentQueries = (kByMatrices<E> ? 32 : 36) * kQueries<E>;

// P and dS of one block, and the sums that a task owns. Null sums are not wanted.
template <class A> struct Gradients {
    A *dq;      // rows of the block's queries
    A *dk, *dv; // rows of the block's keys
    int64_t dq_row, dk_row, dv_row;
};

// The part of dq that comes through r: the strip's dS, read along the band of columns, times r. Row l of dS is read
// from rows - 1 - l keys before the first to l behind the last, so those are set to 0.
template <class A, class T>
void add_relative_gradient(const AttentionArgs &args, const QuerySide<A, T> &queries, int64_t query, int64_t rows,
                           int64_t key0, int64_t width, A *ds, A *dq, int64_t dq_row, Ahead &ahead) {
    const AttentionRelative &relative = args.relative;
    for (int64_t i = 0; i < rows; ++i) {
        memset(ds + i * kGradientStride - kGap, 0, size_t(kGap) * sizeof(A));
        memset(ds + i * kGradientStride + round_up(width, kLanes<A>), 0, size_t(kGap) * sizeof(A));
    }
    const int64_t begin = relative_column(relative, query + rows - 1, key0),
                  end = relative_column(relative, query, key0 + width - 1) + 1;
    const int64_t first = larger(begin, 0), last = smaller(end, relative.count);
    if (first < last)
        multiply_strip<A, InRows<kGradientStride + 1>>(ahead, last - first, rows, args.dim,
                                                       ds - (rows - 1) + (first - begin), queries.relative->columns,
                                                       first, dq, dq_row, Store::add);
}

#if defined(__AVX512BF16__)
// Of pairs: rows [i0, i0 + rows) of P and dS, `width` keys, as pairs of queries; up to a whole strip of zeros behind.
template <class E> NF_INLINE void round_strip(const Blocks<E> &blocks, int64_t i0, int64_t rows, int64_t width) {
    if constexpr (kPairs<E>) {
        constexpr int W = kLanes<E>;
        auto round = [&](const float *from, E *to) {
            from += i0 * kGradientStride;
            to += i0 / 2 * kGradientStride;
            for (int64_t i = 0; i < kStripRows<E>; i += 2, from += 2 * kGradientStride, to += kGradientStride)
                for (int64_t j = 0; j < width; j += W)
                    store(to + j, to_pairs(i < rows ? load(from + j) : Vec<float>{},
                                           i + 1 < rows ? load(from + kGradientStride + j) : Vec<float>{}));
        };
        round(blocks.p, blocks.p_pairs);
        round(blocks.ds, blocks.ds_pairs);
    }
}
// dS of a strip as pairs of keys, in rows, zeros behind up to a whole register of pairs.
template <class E> void round_rows(const float *ds, int64_t rows, int64_t width, E *to) {
    constexpr int W = kLanes<float>;
    for (int64_t i = 0; i < rows; ++i, ds += kGradientStride) {
        bf16 *row = reinterpret_cast<bf16 *>(to + i * Blocks<E>::kRowOfPairs);
        for (int64_t j = 0; j < width; j += W)
            store_flushed(row + j, load(ds + j));
        if (width % (2 * W) != 0)
            store_flushed(row + width, Vec<float>{});
    }
}
// to[j * kRowOfKey + i] = from[i * kGradientStride + j] for a strip of keys j and `steps` pairs i, whole registers.
template <class E> void transpose_pairs(const E *from, int64_t steps, E *to) {
    constexpr int W = kLanes<E>;
    for (int64_t j = 0; j < kStripRows<E>; j += W)
        for (int64_t i = 0; i < steps; i += W) {
            Vec<E> square[W];
#pragma GCC unroll 16
            for (int step = 0; step < W; ++step)
                square[step] = load(from + (i + step) * kGradientStride + j);
            transpose_square<Acc<E>>(square);
#pragma GCC unroll 16
            for (int key = 0; key < W; ++key)
                store(to + (j + key) * Blocks<E>::kRowOfKey + i, square[key]);
        }
}

#else
template <class E> NF_INLINE void round_strip(const Blocks<E> &, int64_t, int64_t, int64_t) {}
#endif

template <class E, class T>
void differentiate_block(const AttentionArgs &args, const KeySide<E, T> &keys, const QuerySide<E, T> &queries,
                         int64_t key0, int64_t query0, const Blocks<E> &blocks, const Gradients<Acc<E>> &sums,
                         Ahead &ahead) {
    typedef Acc<E> A;
    constexpr int64_t NR = kTileColumns<E>, kRows = kStripRows<E>;
    [[maybe_unused]] const Registers<E> registers{};
    A *p = blocks.p, *ds = blocks.ds;
    const int64_t key_count = smaller(kBackwardKeys, args.keys - key0);
    const int64_t query_count = smaller(kQueries<E>, args.queries - query0);
    const int64_t padded = round_up(key_count, NR);
    KeyRange kept_columns[kStripsOfBlock]; // of each strip, relative to key0; empty: first >= last

    bool any = false;
    for (int64_t s = 0; s * kRows < query_count; ++s) {
        const int64_t i0 = s * kRows, rows = smaller(kRows, query_count - i0);
        const KeyRange span = span_of_keys(queries.scoring, query0 + i0, rows, key0, key0 + key_count);
        kept_columns[s] = {span.first - key0, span.last - key0};
        any = any || span.first < span.last;
    }
    if (!any)
        return;

    for (int64_t s = 0; s * kRows < query_count; ++s) {
        const int64_t i0 = s * kRows, rows = smaller(kRows, query_count - i0), query = query0 + i0;
        const int64_t first = kept_columns[s].first, last = kept_columns[s].last;
        if (first >= last) {
            // With global tokens or a mask step 4 reads strips that lie between others, too.
            if ((queries.scoring.global || queries.scoring.mask) && sums.dk) {
                memset(p + i0 * kGradientStride, 0, size_t(rows * kGradientStride) * sizeof(A));
                memset(ds + i0 * kGradientStride, 0, size_t(rows * kGradientStride) * sizeof(A));
                round_strip(blocks, i0, rows, padded);
            }
            continue;
        }
        const int64_t width = last - first, full_width = round_up(width, kLanes<A>);
        A *scores = p + i0 * kGradientStride + first, *gradient = ds + i0 * kGradientStride + first;
        differentiate_strip(args, keys, queries, query, rows, key0 + first, width, true, A(args.scale), scores,
                            gradient, blocks.band, ahead);
        for (int64_t i = 0; i < rows; ++i) {
            // Step 4 reads columns of whole strips of keys: what lies beside was never computed and counts as 0.
            if (sums.dk) {
                A *p_row = p + (i0 + i) * kGradientStride, *ds_row = ds + (i0 + i) * kGradientStride;
                for (int64_t j = 0; j < first; j += kLanes<A>) {
                    store(p_row + j, Vec<A>{});
                    store(ds_row + j, Vec<A>{});
                }
                for (int64_t j = first + full_width; j < padded; j += kLanes<A>) {
                    store(p_row + j, Vec<A>{});
                    store(ds_row + j, Vec<A>{});
                }
            }
        }
        if (sums.dk)
            round_strip(blocks, i0, rows, padded);
        if (sums.dq) {
            A *dq = sums.dq + i0 * sums.dq_row;
            const int64_t row = key0 + first - keys.first;
            if constexpr (kPairs<E>) {
                round_rows(gradient, rows, full_width, blocks.ds_rows);
                multiply_strip<E, InRows<Blocks<E>::kRowOfPairs>>(ahead, width, rows, args.dim, blocks.ds_rows,
                                                                  keys.rows, row, dq, sums.dq_row, Store::add);
            } else {
                multiply_strip<A, InRows<kGradientStride>>(ahead, width, rows, args.dim, gradient, keys.rows, row, dq,
                                                           sums.dq_row, Store::add);
                if (args.relative.r)
                    add_relative_gradient(args, queries, query, rows, key0 + first, width, gradient, dq, sums.dq_row,
                                          ahead);
            }
        }
    }
    if (!sums.dk)
        return;
    const int64_t strips = ceil_div(query_count, kRows);
    for (int64_t j0 = 0; j0 < key_count; j0 += kRows) {
        const int64_t columns = smaller(kRows, key_count - j0);
        // The strips of queries that see any of these keys lie next to each other, or others between them hold 0.
        int64_t s = 0, end = strips;
        while (s < end && (kept_columns[s].first >= j0 + columns || kept_columns[s].last <= j0))
            ++s;
        while (end > s && (kept_columns[end - 1].first >= j0 + columns || kept_columns[end - 1].last <= j0))
            --end;
        if (s == end)
            continue;
        const int64_t i0 = s * kRows, depth = smaller(query_count, end * kRows) - i0;
        const int64_t query = query0 + i0 - queries.first;
        A *dv = sums.dv + j0 * sums.dv_row, *dk = sums.dk + j0 * sums.dk_row;
        auto add = [&](auto layout, const E *of_p, const E *of_ds) {
            typedef decltype(layout) Layout;
            multiply_strip<E, Layout>(ahead, depth, columns, args.value_dim, of_p, queries.douts, query, dv,
                                      sums.dv_row, Store::add);
            multiply_strip<E, Layout>(ahead, depth, columns, args.dim, of_ds, queries.queries, query, dk, sums.dk_row,
                                      Store::add);
        };
        if constexpr (kByMatrices<E>) {
            const int64_t begin = i0 / 2, steps = round_up(steps_of<E>(depth), kLanes<A>);
            transpose_pairs(blocks.p_pairs + begin * kGradientStride + j0, steps, blocks.p_transposed);
            transpose_pairs(blocks.ds_pairs + begin * kGradientStride + j0, steps, blocks.ds_transposed);
            add(InRows<Blocks<E>::kRowOfKey>{}, blocks.p_transposed, blocks.ds_transposed);
        } else if constexpr (kPairs<E>) {
            const int64_t begin = i0 / 2 * kGradientStride + j0;
            add(InColumns<kGradientStride>{}, blocks.p_pairs + begin, blocks.ds_pairs + begin);
        } else {
            const int64_t begin = i0 * kGradientStride + j0;
            add(InColumns<kGradientStride>{}, p + begin, ds + begin);
        }
    }
}

// The same where some input is not finite: 0 x NaN is NaN, so masked pairs are left out one by one.
template <class E, class T>
void differentiate_block_selecting(const AttentionArgs &args, const KeySide<E, T> &keys, const QuerySide<E, T> &queries,
                                   int64_t key0, int64_t query0, const Gradients<Acc<E>> &sums) {
    typedef Acc<E> A;
    const int64_t key_end = smaller(key0 + kBackwardKeys, args.keys),
                  query_end = smaller(query0 + kQueries<E>, args.queries);
    for (int64_t i = query0; i < query_end; ++i)
        for (int64_t j = key0; j < key_end; ++j) {
            PairGradient<A> pair;
            if (!differentiate_pair(args, keys, queries, i, j, true, A(args.scale), pair))
                continue;
            const T *q = queries.q + i * args.q.row, *k = keys.k + j * args.k.row;
            const T *dout = queries.dout + i * args.dout.row, *r = nullptr;
            if (args.relative.r)
                r = queries.relative->r - relative_column(args.relative, i, j) * args.relative.row;
            for (int64_t d = 0; d < args.dim; ++d) {
                const A of_k = A(load_one(k + d)) + (r ? A(load_one(r + d)) : A(0));
                const A of_q = A(load_one(q + d)) + (r ? A(queries.relative->bias_u[d]) : A(0));
                if (sums.dq)
                    sums.dq[(i - query0) * sums.dq_row + d] += pair.ds * of_k;
                if (sums.dk)
                    sums.dk[(j - key0) * sums.dk_row + d] += pair.ds * of_q;
            }
            for (int64_t d = 0; sums.dv && d < args.value_dim; ++d)
                sums.dv[(j - key0) * sums.dv_row + d] += pair.p * A(load_one(dout + d));
        }
}

template <class E, class T>
NF_INLINE void differentiate(const AttentionArgs &args, const KeySide<E, T> &keys, const QuerySide<E, T> &queries,
                             int64_t key0, int64_t query0, const Blocks<E> &blocks, const Gradients<Acc<E>> &sums,
                             Ahead &ahead) {
    if (keys.finite(key0) && queries.finite(query0))
        differentiate_block<E, T>(args, keys, queries, key0, query0, blocks, sums, ahead);
    else
        differentiate_block_selecting<E, T>(args, keys, queries, key0, query0, sums);
}

template <class E> KeyRange query_blocks(const AttentionArgs &args, int64_t key0) {
    KeyRange queries = queries_of_any(args, key0, smaller(key0 + kBackwardKeys, args.keys));
    if (args.global)
        queries = {larger(0, key0 - args.causal_high), args.queries};
    return {queries.first / kQueries<E> * kQueries<E>, queries.last};
}

// Where rows of a gradient are summed: in the result itself, if its type and width allow whole vectors, else beside.
template <class E, class T> struct GradientRows {
    typedef Acc<E> A;
    A *data;
    int64_t row, rows, columns;
    T *result;
    int64_t result_row;

    static int64_t size(int64_t rows, int64_t columns) {
        return lies_in_panels<A, T>(columns)
                   ? 0
                   : part<A>(round_up(rows, kStripRows<E>) * round_up(columns, kTileColumns<E>));
    }
    // All rows of one head of `to`, set to 0.
    static GradientRows begin(T *to, int64_t to_row, int64_t rows, int64_t columns, Arena<A> &arena) {
        GradientRows sums{nullptr, round_up(columns, kTileColumns<E>), rows, columns, to, to_row};
        if constexpr (std::is_same<A, T>::value)
            if (lies_in_panels<A, T>(columns)) {
                sums.data = to;
                sums.row = to_row;
                for (int64_t i = 0; i < rows; ++i)
                    memset(to + i * to_row, 0, size_t(columns) * sizeof(A));
                return sums;
            }
        sums.data = arena.take(size(rows, columns));
        memset(sums.data, 0, size_t(size(rows, columns)) * sizeof(A));
        return sums;
    }
    void finish() const {
        if (!lies_in_panels<A, T>(columns))
            write_rows<A, T>(data, row, rows, columns, result, result_row);
    }
};

template <class E, class T> int64_t differentiate_head_size(const AttentionArgs &args) {
    typedef Acc<E> A;
    typedef GradientRows<E, T> Rows;
    return KeySide<E, T>::size(args, smaller(kSegmentKeys, args.keys)) +
           QuerySide<E, T>::size(args, smaller(kSegmentQueries<E>, args.queries)) + RelativeSide<A, T>::size(args) +
           Blocks<E>::kSize + Rows::size(args.keys, args.dim) + Rows::size(args.keys, args.value_dim) +
           Rows::size(args.queries, args.dim);
}

// What differentiate_head begins with: rows of gradients, which it sets to 0, and what it packs.
template <class E, class T> void fetch_head(const KvHead &of, Ahead &ahead) {
    const AttentionArgs &args = *of.args;
    auto add = [&](const AttentionOperand &x, int64_t head, int64_t rows, int64_t width, int64_t most) {
        ahead.add(head_of<T>(x, of.batch, head), smaller(rows, most), width, x.row);
    };
    const int64_t head = of.head * of.group;
    add(args.dk, of.head, args.keys, args.dim, args.keys);
    add(args.dv, of.head, args.keys, args.value_dim, args.keys);
    add(args.dq, head, args.queries, args.dim, args.queries);
    add(args.dout, head, args.queries, args.value_dim, kSegmentQueries<E>);
    add(args.q, head, args.queries, args.dim, kSegmentQueries<E>);
    add(args.out, head, args.queries, args.value_dim, kSegmentQueries<E>);
    add(args.k, of.head, args.keys, args.dim, kSegmentKeys);
    add(args.v, of.head, args.keys, args.value_dim, kSegmentKeys);
}
// Blocks of queries before the end of a head from which on the next one is fetched: as many as have tiles for all these
// lines. None where there is much more than a second-level cache holds: what it lost waits in the third.
template <class E, class T> int64_t blocks_to_fetch(const AttentionArgs &args) {
    const int64_t both = args.dim + args.value_dim;
    const int64_t bytes = (2 * (args.keys + args.queries) * both) * int64_t(sizeof(T));
    if (bytes > runtime::second_level_cache() * 2)
        return 0;
    const int64_t steps =
        kStripsOfBlock * smaller(args.keys, kBackwardKeys) * 5 * both / (2 * kTileColumns<E> * kElements<E>);
    return 1 + ceil_div(bytes / runtime::kLineBytes, larger(1, steps)); // the last block may be short
}

// All of one key/value head. `next`: the one after it, or null. Segments change what is packed when, and no order of a
// sum: dq over key blocks, dk and dv over heads and then query blocks.
template <class E, class T> void differentiate_head(const KvHead &of, Acc<E> *memory, const KvHead *next) {
    typedef Acc<E> A;
    typedef GradientRows<E, T> Rows;
    const AttentionArgs &args = *of.args;
    const int64_t key_segment = smaller(kSegmentKeys, args.keys),
                  query_segment = smaller(kSegmentQueries<E>, args.queries);
    Arena<A> arena{memory};
    const Blocks<E> blocks(arena.take(Blocks<E>::kSize));
    const Arena<A> of_keys{arena.take(KeySide<E, T>::size(args, key_segment))},
        of_queries{arena.take(QuerySide<E, T>::size(args, query_segment))},
        of_relative{arena.take(RelativeSide<A, T>::size(args))};
    KeySide<E, T> keys;
    QuerySide<E, T> queries;
    RelativeSide<A, T> relative;
    const Rows dk = Rows::begin(head_of<T>(args.dk, of.batch, of.head), args.dk.row, args.keys, args.dim, arena);
    const Rows dv = Rows::begin(head_of<T>(args.dv, of.batch, of.head), args.dv.row, args.keys, args.value_dim, arena);
    int64_t packed_keys = -1; // the segment that `keys` holds
    Ahead ahead;
    const int64_t fetch_head_at = larger(0, ceil_div(args.queries, kQueries<E>) - blocks_to_fetch<E, T>(args)) *
                                  kQueries<E>; // first query of the block, with the last keys
    for (int64_t head = of.head * of.group; head < (of.head + 1) * of.group; ++head) {
        Arena<A> rest = arena;
        relative.pack(args, head, of_relative);
        const Rows dq = Rows::begin(head_of<T>(args.dq, of.batch, head), args.dq.row, args.queries, args.dim, rest);
        for (int64_t first = 0; first < args.queries; first += kSegmentQueries<E>) {
            const int64_t last = smaller(first + kSegmentQueries<E>, args.queries);
            queries.pack(args, relative, of.batch, head, first, last - first, of_queries);
            for (int64_t key0 = 0; key0 < args.keys; key0 += kBackwardKeys) {
                const KeyRange range = query_blocks<E>(args, key0);
                const KeyRange here = {larger(first, range.first), smaller(last, range.last)};
                if (here.first >= here.last)
                    continue;
                const int64_t segment = key0 / kSegmentKeys * kSegmentKeys;
                if (segment != packed_keys)
                    keys.pack(args, of.batch, of.head, segment, smaller(kSegmentKeys, args.keys - segment), of_keys);
                packed_keys = segment;
                for (int64_t query0 = here.first; query0 < here.last; query0 += kQueries<E>) {
                    if (next && query0 >= fetch_head_at && key0 + kBackwardKeys >= args.keys &&
                        head + 1 == (of.head + 1) * of.group) {
                        fetch_head<E, T>(*next, ahead);
                        next = nullptr;
                    }
                    differentiate<E, T>(args, keys, queries, key0, query0, blocks,
                                        {dq.data + query0 * dq.row, dk.data + key0 * dk.row, dv.data + key0 * dv.row,
                                         dq.row, dk.row, dv.row},
                                        ahead);
                }
            }
        }
        dq.finish();
    }
    dk.finish();
    dv.finish();
}

// Few heads: pack everything, then one pass over blocks of keys and one over blocks of queries.
template <class E, class T> bool differentiate_few(const Sequences &all) {
    typedef Acc<E> A;
    PackedHeads<E, T> packed(all);
    if (!packed.pack())
        return false;
    Failure failure;
    packed.for_each_key_block([&](const KvHead &of, int64_t key0) {
        const AttentionArgs &args = *of.args;
        const int64_t dim_row = round_up(args.dim, kTileColumns<E>),
                      value_row = round_up(args.value_dim, kTileColumns<E>);
        Scratch<A> work(Blocks<E>::kSize + kBackwardKeys * (dim_row + value_row));
        if (!work)
            return failure.set();
        Ahead nothing;
        A *dk = work.data + Blocks<E>::kSize, *dv = dk + kBackwardKeys * dim_row;
        memset(dk, 0, size_t(kBackwardKeys * (dim_row + value_row)) * sizeof(A));
        const KeyRange range = query_blocks<E>(args, key0);
        for (int64_t head = of.head * of.group; head < (of.head + 1) * of.group; ++head)
            for (int64_t query0 = range.first; query0 < range.last; query0 += kQueries<E>)
                differentiate<E, T>(args, packed.keys_of(of), packed.queries_of(args, of.batch, head), key0, query0,
                                    Blocks<E>(work.data), {nullptr, dk, dv, 0, dim_row, value_row}, nothing);
        const int64_t rows = smaller(kBackwardKeys, args.keys - key0);
        write_rows<A, T>(dk, dim_row, rows, args.dim, head_of<T>(args.dk, of.batch, of.head) + key0 * args.dk.row,
                         args.dk.row);
        write_rows<A, T>(dv, value_row, rows, args.value_dim,
                         head_of<T>(args.dv, of.batch, of.head) + key0 * args.dv.row, args.dv.row);
    });
    packed.for_each_query_block([&](const KvHead &of, int64_t head, int64_t query0) {
        const AttentionArgs &args = *of.args;
        const int64_t dim_row = round_up(args.dim, kTileColumns<E>);
        Scratch<A> work(Blocks<E>::kSize + kQueries<E> * dim_row);
        if (!work)
            return failure.set();
        Ahead nothing;
        A *dq = work.data + Blocks<E>::kSize;
        memset(dq, 0, size_t(kQueries<E> * dim_row) * sizeof(A));
        for (int64_t key0 = 0; key0 < args.keys; key0 += kBackwardKeys) {
            const KeyRange range = query_blocks<E>(args, key0);
            if (query0 >= range.first && query0 < range.last)
                differentiate<E, T>(args, packed.keys_of(of), packed.queries_of(args, of.batch, head), key0, query0,
                                    Blocks<E>(work.data), {dq, nullptr, nullptr, dim_row, 0, 0}, nothing);
        }
        write_rows<A, T>(dq, dim_row, smaller(kQueries<E>, args.queries - query0), args.dim,
                         head_of<T>(args.dq, of.batch, head) + query0 * args.dq.row, args.dq.row);
    });
    return !failure.happened;
}

// Dividing blocks takes 7 products instead of 5: it pays where whole heads would leave more than that idle.
NF_INLINE bool differentiates_blocks(double work, int64_t kv_heads, int64_t threads) {
    return 5 * ceil_div(kv_heads, threads) * threads > 7 * kv_heads && divides_blocks(work, kv_heads, threads);
}

template <class E, class T> bool attention_backward_of(const Sequences &all) {
    typedef Acc<E> A;
    const int64_t kv_heads = all.kv_heads(), threads = runtime::threads_here();
    const double work = work_of(all);
    if (differentiates_blocks(work, kv_heads, threads))
        return differentiate_few<E, T>(all);
    const int64_t at_once = heads_of_task(work, kv_heads, threads);
    int64_t size = 0;
    for (int64_t s = 0; s < all.count; ++s)
        size = larger(size, differentiate_head_size<E, T>(all.data[s]));
    Failure failure;
    parallel_tasks(ceil_div(kv_heads, at_once), [&](int64_t task) {
        Scratch<A> memory(size);
        if (!memory)
            return failure.set();
        const int64_t end = smaller(kv_heads, (task + 1) * at_once);
        for (int64_t kv = task * at_once; kv < end; ++kv) {
            const int64_t next_kv = head_after(kv, end, at_once, threads);
            const KvHead next = find_kv_head(all, smaller(next_kv, kv_heads - 1));
            differentiate_head<E, T>(find_kv_head(all, kv), memory.data, next_kv < kv_heads ? &next : nullptr);
        }
    });
    return !failure.happened;
}

template <class T> bool attention_backward(const AttentionArgs *sequences, int64_t count) {
    const Sequences all{sequences, count};
    return takes_pairs<T>(all) ? attention_backward_of<typename OperandOf<T>::type, T>(all)
                               : attention_backward_of<Acc<T>, T>(all);
}

// ---- what a call is going to do, from the functions above that decide it

template <class E, class T> double differentiated_by_head(const AttentionArgs &args, int64_t batch, int64_t head) {
    typedef Acc<E> A;
    Scoring<A, T> scoring = Scoring<A, T>::of(args, batch, head);
    scoring.narrow();
    double pairs = 0;
    for (int64_t key0 = 0; key0 < args.keys; key0 += kBackwardKeys) {
        const int64_t key_end = smaller(key0 + kBackwardKeys, args.keys);
        const KeyRange range = query_blocks<E>(args, key0);
        const int64_t last = smaller(args.queries, round_up(larger(0, range.last), kQueries<E>));
        for (int64_t query = range.first; query < last; query += kStripRows<E>) { // blocks are whole strips
            const int64_t rows = smaller(kStripRows<E>, args.queries - query);
            const KeyRange span = span_of_keys(scoring, query, rows, key0, key_end);
            pairs += double(rows * larger(0, span.last - span.first));
        }
    }
    return pairs;
}

template <class E, class T> void plan_attention_backward_of(const Sequences &all, Plan &plan) {
    typedef Acc<E> A;
    const int64_t kv_heads = all.kv_heads(), threads = runtime::threads_here();
    const double work = work_of(all);
    if (kv_heads == 0) {
        plan.path = "nothing to compute";
        return;
    }
    int64_t size = 0, packed = 0, key_blocks = 0, query_blocks_of_all = 0, block = 0;
    for (int64_t s = 0; s < all.count; ++s) {
        const AttentionArgs &args = all.data[s];
        plan.visited += sum_over_heads(args, differentiated_by_head<E, T>);
        size = larger(size, differentiate_head_size<E, T>(args));
        packed += args.batches * (args.kv_heads * KeySide<E, T>::size(args, args.keys) +
                                  args.heads * QuerySide<E, T>::size(args, args.queries));
        if (args.relative.r)
            packed += args.heads * RelativeSide<A, T>::size(args);
        key_blocks = larger(key_blocks, ceil_div(args.keys, kBackwardKeys));
        query_blocks_of_all = larger(query_blocks_of_all, ceil_div(args.queries, kQueries<E>));
        const int64_t dim_row = round_up(args.dim, kTileColumns<E>);
        block = larger(block, Blocks<E>::kSize + kBackwardKeys * (dim_row + round_up(args.value_dim, kTileColumns<E>)));
        block = larger(block, Blocks<E>::kSize + kQueries<E> * dim_row);
    }
    if (differentiates_blocks(work, kv_heads, threads)) {
        plan.path = "all heads packed first: threads divide blocks of keys for dk and dv, then of queries for dq";
        plan.threads = runtime::threads_for(kv_heads * larger(key_blocks, query_blocks_of_all), 1);
        plan.scratch = int64_t(sizeof(A)) * (packed + plan.threads * block);
        plan.visited *= 2; // each pass computes the scores
        tell(plan, "tasks_for_dk_and_dv", kv_heads * key_blocks);
        tell(plan, "tasks_for_dq", kv_heads * query_blocks_of_all);
    } else {
        const int64_t at_once = heads_of_task(work, kv_heads, threads), tasks = ceil_div(kv_heads, at_once);
        plan.path = "a key/value head packed and used by one thread: threads divide heads";
        plan.threads = runtime::threads_for(tasks, 1);
        plan.scratch = int64_t(sizeof(A)) * plan.threads * size;
        tell(plan, "tasks", tasks);
        tell(plan, "heads_of_a_task", at_once);
    }
    tell(plan, "tile_rows", kStripRows<E>);
    tell(plan, "tile_columns", kTileColumns<E>);
    tell(plan, "block_queries", kQueries<E>);
    tell(plan, "block_keys", kBackwardKeys);
    tell_whether(plan, "pairs_are_multiplied_in_their_own_type", kPairs<E>);
    tell(plan, "bits_of_the_sums", 8 * int64_t(sizeof(A)));
}
template <class T> void plan_attention_backward(const AttentionArgs *sequences, int64_t count, Plan &plan) {
    const Sequences all{sequences, count};
    takes_pairs<T>(all) ? plan_attention_backward_of<typename OperandOf<T>::type, T>(all, plan)
                        : plan_attention_backward_of<Acc<T>, T>(all, plan);
}

} // namespace

void fill_attention_backward(Kernels &table) {
    table.plan_attention_backward[int(DType::f32)] = plan_attention_backward<float>;
    table.plan_attention_backward[int(DType::f64)] = plan_attention_backward<double>;
    table.plan_attention_backward[int(DType::f16)] = plan_attention_backward<f16>;
    table.plan_attention_backward[int(DType::bf16)] = plan_attention_backward<bf16>;
    table.attention_backward[int(DType::f32)] = attention_backward<float>;
    table.attention_backward[int(DType::f64)] = attention_backward<double>;
    table.attention_backward[int(DType::f16)] = attention_backward<f16>;
    table.attention_backward[int(DType::bf16)] = attention_backward<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
