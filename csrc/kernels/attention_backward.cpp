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
// Each gradient is summed in a fixed order: dQ over key blocks, dK and dV over heads and query blocks. With enough
// heads one thread does all of a key/value head; with few, one pass divides the key blocks (dK, dV) and a second one
// the query blocks (dQ), computing P twice: 7 products instead of 5, the same bits.
#include "kernels/attention.hpp"

#include <math.h>

namespace nf::NUMFORMER_LEVEL {
namespace {

constexpr int kBlockKeys = 256;
constexpr int kRowStride = kBlockKeys + 16; // rows 1 KiB apart would share cache sets
constexpr double kLog2e = 1.4426950408889634074;

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

template <class A, class T> struct KeySide {
    const T *k, *v;
    const A *keys_transposed, *values_transposed;
    Panels<A> keys;
    bool finite;

    static int64_t size(const AttentionArgs &args) {
        const int64_t padded = round_up(args.keys, kTileColumns<A>);
        return part<A>(padded * args.dim) + part<A>(padded * args.value_dim) +
               part<A>(lies_in_panels<A, T>(args.dim) ? 0 : panels_size<A>(args.keys, args.dim));
    }
    void pack(const AttentionArgs &args, int64_t batch, int64_t kv_head, Arena<A> arena) {
        const int64_t padded = round_up(args.keys, kTileColumns<A>);
        k = head_of<T>(args.k, batch, kv_head);
        v = head_of<T>(args.v, batch, kv_head);
        A *kt = arena.take(padded * args.dim), *vt = arena.take(padded * args.value_dim);
        pack_keys<A, T>(k, args.keys, args.dim, args.k.row, kt);
        pack_keys<A, T>(v, args.keys, args.value_dim, args.v.row, vt);
        keys_transposed = kt;
        values_transposed = vt;
        keys = as_panels<A, T>(k, args.keys, args.dim, args.k.row, arena.next);
        finite = all_finite<A>(k, args.keys, args.dim, args.k.row) &&
                 all_finite<A>(v, args.keys, args.value_dim, args.v.row);
    }
};

template <class A, class T> struct QuerySide {
    const T *q, *dout;
    const A *q_strips, *dout_strips;
    Panels<A> queries, douts;
    A *delta, *lse2; // dout . out, and the log-sum-exp in units of log 2
    Mask mask;
    bool finite;

    static int64_t size(const AttentionArgs &args) {
        const int64_t padded = round_up(args.queries, kTileRows);
        return part<A>(padded * args.dim) + part<A>(padded * args.value_dim) + 2 * part<A>(args.queries) +
               part<A>(lies_in_panels<A, T>(args.dim) ? 0 : panels_size<A>(args.queries, args.dim)) +
               part<A>(lies_in_panels<A, T>(args.value_dim) ? 0 : panels_size<A>(args.queries, args.value_dim));
    }
    void pack(const AttentionArgs &args, int64_t batch, int64_t head, Arena<A> arena) {
        const int64_t padded = round_up(args.queries, kTileRows);
        q = head_of<T>(args.q, batch, head);
        dout = head_of<T>(args.dout, batch, head);
        mask = mask_of(args, batch, head);
        A *qs = arena.take(padded * args.dim), *ds = arena.take(padded * args.value_dim);
        pack_strips<A, T>(q, args.queries, args.dim, args.q.row, A(args.scale * kLog2e), qs);
        pack_strips<A, T>(dout, args.queries, args.value_dim, args.dout.row, A(1), ds);
        q_strips = qs;
        dout_strips = ds;
        delta = arena.take(args.queries);
        lse2 = arena.take(args.queries);
        A *copy = arena.take(lies_in_panels<A, T>(args.dim) ? 0 : panels_size<A>(args.queries, args.dim));
        queries = as_panels<A, T>(q, args.queries, args.dim, args.q.row, copy);
        douts = as_panels<A, T>(dout, args.queries, args.value_dim, args.dout.row, arena.next);

        const T *out = head_of<T>(args.out, batch, head);
        const A *lse = static_cast<const A *>(args.lse) + (batch * args.heads + head) * args.queries;
        A not_finite = 0;
        for (int64_t i = 0; i < args.queries; ++i) {
            Vec<A> sum = {};
            for_each_vector<A>(args.value_dim, [&](int64_t d, int n) {
                sum = fma(load_some(dout + i * args.dout.row + d, n), load_some(out + i * args.out.row + d, n), sum);
            });
            delta[i] = reduce_add<A>(sum);
            lse2[i] = A(double(lse[i]) * kLog2e);
            not_finite += delta[i] * 0 + (lse[i] == kMinusInfinity<A> ? A(0) : lse[i] * 0);
        }
        finite = not_finite == 0 && all_finite<A>(q, args.queries, args.dim, args.q.row) &&
                 all_finite<A>(dout, args.queries, args.value_dim, args.dout.row);
    }
};

// P and dS of one block, and the sums that a task owns. Null sums are not wanted.
template <class A> struct Gradients {
    A *dq;      // rows of the block's queries
    A *dk, *dv; // rows of the block's keys
    int64_t dim_row, value_row;
};

// Step 2 for one row. Returns nothing: scores become P, dP becomes dS.
template <class A> NF_INLINE void differentiate_row(int64_t width, A lse2, A delta, A scale, A *scores, A *gradient) {
    constexpr int W = kLanes<A>;
    if (lse2 == kMinusInfinity<A>) { // nothing to attend to
        for (int64_t j = 0; j < width; j += W) {
            store(scores + j, Vec<A>{});
            store(gradient + j, Vec<A>{});
        }
        return;
    }
    const Vec<A> shift = broadcast(lse2), mean = broadcast(delta);
    for (int64_t j = 0; j < width; j += W) {
        const Vec<A> p = exp2_nonpositive<A>(load(scores + j) - shift);
        store(scores + j, p);
        store(gradient + j, p * (load(gradient + j) - mean) * scale);
    }
}

template <class A, class T>
void differentiate_block(const AttentionArgs &args, const KeySide<A, T> &keys, const QuerySide<A, T> &queries,
                         int64_t key0, int64_t query0, A *p, A *ds, const Gradients<A> &sums) {
    constexpr int64_t NR = kTileColumns<A>;
    const int64_t key_count = smaller(kBlockKeys, args.keys - key0);
    const int64_t query_count = smaller(kBlockQueries, args.queries - query0);
    const int64_t padded = round_up(key_count, NR);
    KeyRange kept_columns[kStripsOfBlock]; // of each strip, relative to key0; empty: first >= last

    for (int64_t s = 0; s * kTileRows < query_count; ++s) {
        const int64_t i0 = s * kTileRows, rows = smaller(kTileRows, query_count - i0), query = query0 + i0;
        const KeyRange range = keys_of_any(args, query, query + rows);
        const int64_t first = larger(key0, range.first / NR * NR) - key0;
        const int64_t last = smaller(key0 + key_count, range.last) - key0;
        kept_columns[s] = {first, last};
        if (first >= last)
            continue;
        const int64_t width = last - first, full_width = round_up(width, kLanes<A>);
        A *scores = p + i0 * kRowStride + first, *gradient = ds + i0 * kRowStride + first;
        for (int64_t j = 0; j < width; j += NR) {
            const int64_t key = key0 + first + j;
            tile_for<A, A, InPanels>(rows, width - j)(args.dim, queries.q_strips + query * args.dim,
                                                      keys.keys_transposed + key * args.dim, NR, scores + j, kRowStride,
                                                      Store::write);
            tile_for<A, A, InPanels>(rows, width - j)(args.value_dim, queries.dout_strips + query * args.value_dim,
                                                      keys.values_transposed + key * args.value_dim, NR, gradient + j,
                                                      kRowStride, Store::write);
        }
        const bool kept = !queries.mask.data && width == full_width &&
                          keys_of(args, query + rows - 1).first <= key0 + first &&
                          keys_of(args, query).last >= key0 + last;
        for (int64_t i = 0; i < rows; ++i) {
            A *row = scores + i * kRowStride;
            if (!kept) {
                mask_row<A>(args, queries.mask, query + i, key0 + first, width, row);
                for (int64_t j = width; j < full_width; ++j)
                    row[j] = kMinusInfinity<A>;
            }
            differentiate_row<A>(full_width, queries.lse2[query + i], queries.delta[query + i], A(args.scale), row,
                                 gradient + i * kRowStride);
            // Step 4 reads columns of whole strips of keys: what lies beside was never computed and counts as 0.
            if (sums.dk) {
                A *p_row = p + (i0 + i) * kRowStride, *ds_row = ds + (i0 + i) * kRowStride;
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
        if (sums.dq)
            multiply_strip<A, InRows<kRowStride>>(width, rows, args.dim, gradient, keys.keys, key0 + first,
                                                  sums.dq + i0 * sums.dim_row, sums.dim_row, Store::add);
    }
    if (!sums.dk)
        return;
    const int64_t strips = ceil_div(query_count, kTileRows);
    for (int64_t j0 = 0; j0 < key_count; j0 += kTileRows) {
        const int64_t columns = smaller(kTileRows, key_count - j0);
        // The strips of queries that see any of these keys lie next to each other.
        int64_t s = 0, end = strips;
        while (s < end && (kept_columns[s].first >= j0 + columns || kept_columns[s].last <= j0))
            ++s;
        while (end > s && (kept_columns[end - 1].first >= j0 + columns || kept_columns[end - 1].last <= j0))
            --end;
        if (s == end)
            continue;
        const int64_t i0 = s * kTileRows, depth = smaller(query_count, end * kTileRows) - i0;
        multiply_strip<A, InColumns<kRowStride>>(depth, columns, args.value_dim, p + i0 * kRowStride + j0,
                                                 queries.douts, query0 + i0, sums.dv + j0 * sums.value_row,
                                                 sums.value_row, Store::add);
        multiply_strip<A, InColumns<kRowStride>>(depth, columns, args.dim, ds + i0 * kRowStride + j0, queries.queries,
                                                 query0 + i0, sums.dk + j0 * sums.dim_row, sums.dim_row, Store::add);
    }
}

// The same where some input is not finite: 0 x NaN is NaN, so masked pairs are left out one by one.
template <class A, class T>
void differentiate_block_selecting(const AttentionArgs &args, const KeySide<A, T> &keys, const QuerySide<A, T> &queries,
                                   int64_t key0, int64_t query0, const Gradients<A> &sums) {
    const int64_t key_end = smaller(key0 + kBlockKeys, args.keys),
                  query_end = smaller(query0 + kBlockQueries, args.queries);
    for (int64_t i = query0; i < query_end; ++i)
        for (int64_t j = key0; j < key_end; ++j) {
            if (queries.lse2[i] == kMinusInfinity<A> || !may_attend(args, queries.mask, i, j))
                continue;
            const T *q = queries.q + i * args.q.row, *k = keys.k + j * args.k.row, *v = keys.v + j * args.v.row;
            const T *dout = queries.dout + i * args.dout.row;
            A score = 0, dp = 0;
            for (int64_t d = 0; d < args.dim; ++d)
                score += A(load_one(q + d)) * A(load_one(k + d));
            for (int64_t d = 0; d < args.value_dim; ++d)
                dp += A(load_one(dout + d)) * A(load_one(v + d));
            const A p = exp2(broadcast(score * A(args.scale * kLog2e) - queries.lse2[i]))[0];
            const A ds = p * (dp - queries.delta[i]) * A(args.scale);
            for (int64_t d = 0; d < args.dim; ++d) {
                if (sums.dq)
                    sums.dq[(i - query0) * sums.dim_row + d] += ds * A(load_one(k + d));
                if (sums.dk)
                    sums.dk[(j - key0) * sums.dim_row + d] += ds * A(load_one(q + d));
            }
            for (int64_t d = 0; sums.dv && d < args.value_dim; ++d)
                sums.dv[(j - key0) * sums.value_row + d] += p * A(load_one(dout + d));
        }
}

template <class A, class T>
NF_INLINE void differentiate(const AttentionArgs &args, const KeySide<A, T> &keys, const QuerySide<A, T> &queries,
                             int64_t key0, int64_t query0, A *blocks, const Gradients<A> &sums) {
    if (keys.finite && queries.finite)
        differentiate_block<A, T>(args, keys, queries, key0, query0, blocks, blocks + kBlockQueries * kRowStride, sums);
    else
        differentiate_block_selecting<A, T>(args, keys, queries, key0, query0, sums);
}

template <class A, class T>
void write_rows(const A *sums, int64_t sums_row, int64_t rows, int64_t columns, T *to, int64_t to_row) {
    for (int64_t i = 0; i < rows; ++i)
        for_each_vector<A>(columns, [&](int64_t d, int n) {
            store_some(to + i * to_row + d, load_some(sums + i * sums_row + d, n), n);
        });
}

NF_INLINE KeyRange query_blocks(const AttentionArgs &args, int64_t key0) {
    const KeyRange queries = queries_of_any(args, key0, smaller(key0 + kBlockKeys, args.keys));
    return {queries.first / kBlockQueries * kBlockQueries, queries.last};
}

template <class T> bool attention_backward(const AttentionArgs &args) {
    typedef Acc<T> A;
    const int64_t group = args.kv_heads ? args.heads / args.kv_heads : 1, kv_heads = args.batches * args.kv_heads;
    if (kv_heads == 0)
        return true;
    const int64_t dim_row = round_up(args.dim, kTileColumns<A>), value_row = round_up(args.value_dim, kTileColumns<A>);
    const int64_t key_size = KeySide<A, T>::size(args), query_size = QuerySide<A, T>::size(args);
    const int64_t block_size = 2 * kBlockQueries * kRowStride;
    const int threads = runtime::threads_here();
    Failure failure;
    auto batch_of = [&](int64_t kv) { return kv / args.kv_heads; };

    if (kv_heads % threads == 0 || kv_heads >= 4 * threads) {
        parallel_tasks(kv_heads, [&](int64_t kv) {
            const int64_t batch = batch_of(kv), kv_head = kv % args.kv_heads;
            const int64_t dk_size = part<A>(args.keys * dim_row), dv_size = part<A>(args.keys * value_row);
            const int64_t dq_size = part<A>(args.queries * dim_row);
            Scratch<A> memory(key_size + query_size + block_size + dk_size + dv_size + dq_size);
            if (!memory)
                return failure.set();
            Arena<A> arena{memory.data};
            A *dk = arena.take(dk_size), *dv = arena.take(dv_size), *dq = arena.take(dq_size),
              *blocks = arena.take(block_size);
            memset(dk, 0, size_t(dk_size + dv_size) * sizeof(A));
            KeySide<A, T> keys;
            keys.pack(args, batch, kv_head, Arena<A>{arena.take(key_size)});
            for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
                QuerySide<A, T> queries;
                queries.pack(args, batch, head, Arena<A>{arena.next});
                memset(dq, 0, size_t(dq_size) * sizeof(A));
                for (int64_t key0 = 0; key0 < args.keys; key0 += kBlockKeys) {
                    const KeyRange range = query_blocks(args, key0);
                    for (int64_t query0 = range.first; query0 < range.last; query0 += kBlockQueries)
                        differentiate<A, T>(
                            args, keys, queries, key0, query0, blocks,
                            {dq + query0 * dim_row, dk + key0 * dim_row, dv + key0 * value_row, dim_row, value_row});
                }
                write_rows<A, T>(dq, dim_row, args.queries, args.dim, head_of<T>(args.dq, batch, head), args.dq.row);
            }
            write_rows<A, T>(dk, dim_row, args.keys, args.dim, head_of<T>(args.dk, batch, kv_head), args.dk.row);
            write_rows<A, T>(dv, value_row, args.keys, args.value_dim, head_of<T>(args.dv, batch, kv_head),
                             args.dv.row);
        });
        return !failure.happened;
    }

    // Few heads: pack everything, then two passes.
    const int64_t heads = args.batches * args.heads;
    Scratch<A> memory(key_size * kv_heads + query_size * heads);
    Scratch<KeySide<A, T>> keys(kv_heads);
    Scratch<QuerySide<A, T>> queries(heads);
    if (!memory || !keys || !queries)
        return false;
    parallel_tasks(kv_heads + heads, [&](int64_t index) {
        if (index < kv_heads)
            keys.data[index].pack(args, batch_of(index), index % args.kv_heads,
                                  Arena<A>{memory.data + index * key_size});
        else
            queries.data[index - kv_heads].pack(
                args, (index - kv_heads) / args.heads, (index - kv_heads) % args.heads,
                Arena<A>{memory.data + kv_heads * key_size + (index - kv_heads) * query_size});
    });
    const int64_t key_blocks = ceil_div(args.keys, kBlockKeys),
                  blocks_of_queries = ceil_div(args.queries, kBlockQueries);
    parallel_tasks(kv_heads * key_blocks, [&](int64_t task) {
        const int64_t kv = task % kv_heads, key0 = task / kv_heads * kBlockKeys, batch = batch_of(kv);
        const int64_t rows = smaller(kBlockKeys, args.keys - key0);
        Scratch<A> work(block_size + kBlockKeys * (dim_row + value_row));
        if (!work)
            return failure.set();
        A *dk = work.data + block_size, *dv = dk + kBlockKeys * dim_row;
        memset(dk, 0, size_t(kBlockKeys * (dim_row + value_row)) * sizeof(A));
        const KeyRange range = query_blocks(args, key0);
        for (int64_t head = kv % args.kv_heads * group; head < (kv % args.kv_heads + 1) * group; ++head)
            for (int64_t query0 = range.first; query0 < range.last; query0 += kBlockQueries)
                differentiate<A, T>(args, keys.data[kv], queries.data[batch * args.heads + head], key0, query0,
                                    work.data, {nullptr, dk, dv, dim_row, value_row});
        write_rows<A, T>(dk, dim_row, rows, args.dim,
                         head_of<T>(args.dk, batch, kv % args.kv_heads) + key0 * args.dk.row, args.dk.row);
        write_rows<A, T>(dv, value_row, rows, args.value_dim,
                         head_of<T>(args.dv, batch, kv % args.kv_heads) + key0 * args.dv.row, args.dv.row);
    });
    parallel_tasks(heads * blocks_of_queries, [&](int64_t task) {
        const int64_t head = task % heads, query0 = task / heads * kBlockQueries;
        const int64_t batch = head / args.heads, kv = batch * args.kv_heads + head % args.heads / group;
        const int64_t rows = smaller(kBlockQueries, args.queries - query0);
        Scratch<A> work(block_size + kBlockQueries * dim_row);
        if (!work)
            return failure.set();
        A *dq = work.data + block_size;
        memset(dq, 0, size_t(kBlockQueries * dim_row) * sizeof(A));
        for (int64_t key0 = 0; key0 < args.keys; key0 += kBlockKeys) {
            const KeyRange range = query_blocks(args, key0);
            if (query0 >= range.first && query0 < range.last)
                differentiate<A, T>(args, keys.data[kv], queries.data[head], key0, query0, work.data,
                                    {dq, nullptr, nullptr, dim_row, value_row});
        }
        write_rows<A, T>(dq, dim_row, rows, args.dim,
                         head_of<T>(args.dq, batch, head % args.heads) + query0 * args.dq.row, args.dq.row);
    });
    return !failure.happened;
}

} // namespace

void fill_attention_backward(Kernels &table) {
    table.attention_backward[int(DType::f32)] = attention_backward<float>;
    table.attention_backward[int(DType::f64)] = attention_backward<double>;
    table.attention_backward[int(DType::f16)] = attention_backward<f16>;
    table.attention_backward[int(DType::bf16)] = attention_backward<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
