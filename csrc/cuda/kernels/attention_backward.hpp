// Attention's backward (T. Dao and others, "FlashAttention", 2022, appendix B.2), in two kernels, so that each gradient
// is summed by one block in one order and nothing is added atomically: one has blocks of queries and makes dq, one has
// blocks of keys and makes dk and dv. The price is that scores and dP are made twice: seven products in place of five.
//
//   P = exp(S - lse), F: dropout's factors (0 or 1 / (1 - p)), delta = rowsum(dO O) - dlse
//   dV = (F P)^T dO,  dS = P (F dO V^T - delta),  through = dS (1 - tanh^2 of the softcap)
//   dQ = scale through K,  dK = scale through^T Q, both summed over the query heads that share a key head
#pragma once
#include "cuda/kernels/attention.hpp"

namespace nf::cuda {

constexpr int kDeltaThreads = 256;

// delta of each row: a warp each.
template <class T> NF_KERNEL(kDeltaThreads) attention_delta(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    const int64_t rows = args.batches * args.heads * args.queries;
    for (int64_t row = block() * (kDeltaThreads / kWarp) + warp(); row < rows;
         row += blocks() * (kDeltaThreads / kWarp)) {
        const int64_t query = row % args.queries, head = row / args.queries % args.heads,
                      batch = row / args.queries / args.heads;
        const T *out = rows_of<T>(args, args.out, batch, head, query),
                *dout = rows_of<T>(args, args.dout, batch, head, query);
        A sum = 0;
        for (int64_t j = lane(); j < args.value_dim; j += kWarp)
            sum += load(out, j) * load(dout, j);
        sum = warp_sum(sum);
        if (lane() == 0)
            static_cast<A *>(args.delta)[row] = args.dlse ? sum - static_cast<const A *>(args.dlse)[row] : sum;
    }
}

// The gradient of the sinks, a block a head: minus the sum over all rows of exp(sink - lse) delta.
template <class T> NF_KERNEL(kDeltaThreads) attention_sinks_backward(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    Shared<double> scratch = SharedMemory().take<double>(kDeltaThreads / kWarp);
    const int64_t head = block();
    const A sink = at_head<T>(args.sinks, head);
    double sum = 0;
    for (int64_t i = thread(); i < args.batches * args.queries; i += kDeltaThreads) {
        const int64_t row = (i / args.queries * args.heads + head) * args.queries + i % args.queries;
        const A lse = static_cast<const A *>(args.lse)[row];
        if (lse != -infinity<A>())
            sum -= double(exp_of(sink - lse) * static_cast<const A *>(args.delta)[row]);
    }
    sum = block_sum(sum, scratch);
    if (thread() > 0)
        return;
    if (args.sinks.is_float)
        static_cast<float *>(args.dsinks)[head] = float(sum);
    else
        store(static_cast<T *>(args.dsinks), head, A(sum));
}

// From the products of queries and keys and from dO V^T: P F and `through` (dS where not through_cap); zeros where the
// query does not look. query(n, e) and the others say whose an element of the fragments is.
template <class T, int N, class Query, class Key, class Lse, class Delta>
NF_DEVICE void change_to_gradients(const Scores<T> &scores, bool sees, bool through_cap, Acc<T> (&s)[N][4],
                                   Acc<T> (&ds)[N][4], Query query, Key key, Lse lse, Delta delta) {
    typedef Acc<T> A;
    if (sees && scores.plain() && !scores.drops()) {
        NF_UNROLL
        for (int i = 0; i < N * 4; ++i) {
            const int n = i / 4, e = i % 4;
            const A of_row = lse(n, e);
            const bool nothing = of_row == -infinity<A>();
            s[n][e] = nothing ? A(0) : exp_of_difference(s[n][e] * scores.scale(), of_row);
            ds[n][e] = nothing ? A(0) : s[n][e] * (ds[n][e] - delta(n, e));
        }
        return;
    }
    change_each(s, ds, [&](int n, int e, A &score, A &of_values) {
        A cap_slope;
        const A of_row = lse(n, e);
        if (!scores.score(query(n, e), key(n, e), sees, score, cap_slope) || of_row == -infinity<A>()) {
            score = of_values = A(0);
            return;
        }
        const A p = exp_of_difference(score, of_row),
                factor = scores.drops() ? scores.kept(query(n, e), key(n, e)) : A(1);
        of_values = p * (of_values * factor - delta(n, e)) * (through_cap ? cap_slope : A(1));
        score = p * factor;
    });
}

// What the forward pass found of this lane's queries, `mine` and `mine` + 8 of `queries`, the first of which has the
// number `row0` among all; one that is not there sees nothing.
template <class A> struct RowStatistics {
    A lse[2], delta[2];
    NF_DEVICE RowStatistics(const AttentionArgs &args, int64_t row0, int64_t mine, int64_t queries) {
        for (int r = 0; r < 2; ++r) {
            const int64_t query = mine + 8 * r;
            const bool there = query < queries;
            lse[r] = there ? static_cast<const A *>(args.lse)[row0 + query] : -infinity<A>();
            delta[r] = there ? static_cast<const A *>(args.delta)[row0 + query] : A(0);
        }
    }
};

template <class T, int D>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention_backward_queries(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kColumns = Tile::kColumns, kStride = Tile::kStride, kTiles = kColumns / 8;
    AttentionPlace place;
    if (!find_place(args, false, Tile::kRows, place))
        return;
    const int64_t kv_head = place.head / (args.heads / args.kv_heads), first = place.first;
    const int64_t rows = smaller_of(Tile::kRows, place.queries - first);
    const int dim = int(args.dim), value_dim = int(args.value_dim);
    SharedMemory memory;
    Shared<T> q = memory.take<T>(Tile::kRows * kStride), dout = memory.take<T>(Tile::kRows * kStride),
              k = memory.take<T>(kColumns * kStride), v = memory.take<T>(kColumns * kStride);
    copy_tile<T, Tile::kRows>(q, kStride, rows_of<T>(args, args.q, place.batch, place.head, place.query_start + first),
                              args.q.row, rows, dim);
    copy_tile<T, Tile::kRows>(dout, kStride,
                              rows_of<T>(args, args.dout, place.batch, place.head, place.query_start + first),
                              args.dout.row, rows, value_dim);
    const T *keys = rows_of<T>(args, args.k, place.batch, kv_head, place.key_start);
    const T *values = rows_of<T>(args, args.v, place.batch, kv_head, place.key_start);
    const Scores<T> scores(args, place, place.head);

    const int t = lane() % 4;
    const int64_t mine = first + warp() * 16 + lane() / 4;
    const int64_t row0 = (place.batch * args.heads + place.head) * args.queries + place.query_start;
    const RowStatistics<A> of_row(args, row0, mine, place.queries);
    A dq[D / 8][4] = {};
    const KeyRange range = keys_of(args, place, first, rows);
    for (int64_t key0 = range.first / kColumns * kColumns; key0 < range.last; key0 += kColumns) {
        if (!scores.needed(first, rows, key0, kColumns))
            continue;
        barrier();
        const int64_t here = smaller_of(kColumns, place.keys - key0);
        const bool odd = copy_tile<T, kColumns>(k, kStride, keys + key0 * args.k.row, args.k.row, here, dim);
        copy_tile<T, kColumns>(v, kStride, values + key0 * args.v.row, args.v.row, here, value_dim);
        const bool sees = scores.all_seen(first, Tile::kRows, key0, kColumns);
        const bool careful = barrier_any(odd && !sees);
        A s[kTiles][4] = {}, ds[kTiles][4] = {};
        multiply_rows<T, kTiles>(s, q.from(warp() * 16 * kStride), k, kStride, dim, args.tf32);
        multiply_rows<T, kTiles>(ds, dout.from(warp() * 16 * kStride), v, kStride, value_dim, args.tf32);
        change_to_gradients(
            scores, sees, true, s, ds, [&](int, int e) { return mine + e / 2 * 8; },
            [&](int n, int e) { return key0 + n * 8 + 2 * t + e % 2; },
            [&](int, int e) { return e < 2 ? of_row.lse[0] : of_row.lse[1]; },
            [&](int, int e) { return e < 2 ? of_row.delta[0] : of_row.delta[1]; });
        multiply_weights<T, kTiles, D / 8>(dq, ds, k, kStride, dim, careful, args.tf32);
    }
    NF_UNROLL
    for (int r = 0; r < 2; ++r) {
        const int64_t query = mine + 8 * r;
        if (query >= place.queries)
            continue;
        store_row(rows_of<T>(args, args.dq, place.batch, place.head, place.query_start + query), dq, r, dim,
                  A(args.scale));
    }
}

template <class T, int D>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention_backward_keys(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kColumns = Tile::kColumns, kStride = Tile::kStride, kTiles = kColumns / 8;
    AttentionPlace place; // its head is that of keys and values
    if (!find_place(args, true, Tile::kRows, place))
        return;
    const int64_t group = args.heads / args.kv_heads, first = place.first;
    const int64_t rows = smaller_of(Tile::kRows, place.keys - first);
    const int dim = int(args.dim), value_dim = int(args.value_dim);
    SharedMemory memory;
    Shared<T> k = memory.take<T>(Tile::kRows * kStride), v = memory.take<T>(Tile::kRows * kStride),
              q = memory.take<T>(kColumns * kStride), dout = memory.take<T>(kColumns * kStride);
    Shared<A> lse = memory.take<A>(kColumns), delta = memory.take<A>(kColumns);
    copy_tile<T, Tile::kRows>(k, kStride, rows_of<T>(args, args.k, place.batch, place.head, place.key_start + first),
                              args.k.row, rows, dim);
    copy_tile<T, Tile::kRows>(v, kStride, rows_of<T>(args, args.v, place.batch, place.head, place.key_start + first),
                              args.v.row, rows, value_dim);
    const int t = lane() % 4;
    const int64_t mine = first + warp() * 16 + lane() / 4;
    A dk[D / 8][4] = {}, dv[D / 8][4] = {};
    const KeyRange range = queries_of(args, place, first, rows);
    for (int64_t head = place.head * group; head < (place.head + 1) * group; ++head) {
        const T *queries = rows_of<T>(args, args.q, place.batch, head, place.query_start);
        const T *gradients = rows_of<T>(args, args.dout, place.batch, head, place.query_start);
        const int64_t row0 = (place.batch * args.heads + head) * args.queries + place.query_start;
        const Scores<T> scores(args, place, head);
        for (int64_t query0 = range.first / kColumns * kColumns; query0 < range.last; query0 += kColumns) {
            if (!scores.needed(query0, kColumns, first, rows))
                continue;
            barrier();
            const int64_t here = smaller_of(kColumns, place.queries - query0);
            bool odd = copy_tile<T, kColumns>(q, kStride, queries + query0 * args.q.row, args.q.row, here, dim);
            odd = copy_tile<T, kColumns>(dout, kStride, gradients + query0 * args.dout.row, args.dout.row, here,
                                         value_dim) ||
                  odd;
            for (int i = thread(); i < kColumns; i += Tile::kThreads) {
                lse[i] = i < here ? static_cast<const A *>(args.lse)[row0 + query0 + i] : -infinity<A>();
                delta[i] = i < here ? static_cast<const A *>(args.delta)[row0 + query0 + i] : A(0);
            }
            const bool sees = scores.all_seen(query0, kColumns, first, Tile::kRows);
            const bool careful = barrier_any(odd && !sees);
            A s[kTiles][4] = {}, ds[kTiles][4] = {}; // rows: keys, columns: queries
            multiply_rows<T, kTiles>(s, k.from(warp() * 16 * kStride), q, kStride, dim, args.tf32);
            multiply_rows<T, kTiles>(ds, v.from(warp() * 16 * kStride), dout, kStride, value_dim, args.tf32);
            change_to_gradients(
                scores, sees, true, s, ds, [&](int n, int e) { return query0 + n * 8 + 2 * t + e % 2; },
                [&](int, int e) { return mine + e / 2 * 8; }, [&](int n, int e) { return lse[n * 8 + 2 * t + e % 2]; },
                [&](int n, int e) { return delta[n * 8 + 2 * t + e % 2]; });
            multiply_weights<T, kTiles, D / 8>(dv, s, dout, kStride, value_dim, careful, args.tf32);
            multiply_weights<T, kTiles, D / 8>(dk, ds, q, kStride, dim, careful, args.tf32);
        }
    }
    NF_UNROLL
    for (int r = 0; r < 2; ++r) {
        const int64_t key = mine + 8 * r;
        if (key >= place.keys)
            continue;
        store_row(rows_of<T>(args, args.dk, place.batch, place.head, place.key_start + key), dk, r, dim, A(args.scale));
        store_row(rows_of<T>(args, args.dv, place.batch, place.head, place.key_start + key), dv, r, value_dim, A(1));
    }
}

// The gradient of the bias: dS, summed over what the bias is broadcast over. A block owns a tile of the gradient (a row
// of tiles or a column where the bias has one key or one query) and goes through all that add to it, in order.
template <class T, int D>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention_bias_backward(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kColumns = Tile::kColumns, kStride = Tile::kStride, kTiles = kColumns / 8, kRows = Tile::kRows;
    const bool one_query = args.bias_queries == 1, one_key = args.bias_keys == 1;
    const int64_t across = one_key ? 1 : ceil_div(args.keys, kColumns),
                  down = one_query ? 1 : ceil_div(args.queries, kRows);
    const int64_t key_tile = block() % across, query_tile = block() / across % down, slice = block() / across / down;
    const int64_t first_query = query_tile * kRows, last_query = one_query ? args.queries : first_query + 1;
    const int64_t first_key = key_tile * kColumns, last_key = one_key ? args.keys : first_key + 1;
    const int dim = int(args.dim), value_dim = int(args.value_dim);
    AttentionPlace place;
    place.query_start = place.key_start = place.first = 0;
    place.queries = args.queries;
    place.keys = args.keys;
    set_pattern(args, place);
    SharedMemory memory;
    Shared<T> q = memory.take<T>(kRows * kStride), dout = memory.take<T>(kRows * kStride),
              k = memory.take<T>(kColumns * kStride), v = memory.take<T>(kColumns * kStride);
    const int t = lane() % 4, g = lane() / 4;
    A sum[kTiles][4] = {};
    for (int64_t member = 0; member < args.batches * args.heads; ++member) {
        place.head = member % args.heads;
        place.batch = place.sequence = member / args.heads;
        if (batch_offset(args, args.dbias.batch, place.batch) + place.head * args.dbias.head !=
            slice * args.bias_queries * args.bias_keys)
            continue; // another slice
        const Scores<T> scores(args, place, place.head);
        const int64_t kv_head = place.head / (args.heads / args.kv_heads);
        for (int64_t query0 = first_query; query0 < last_query; query0 += kRows) {
            const int64_t rows = smaller_of(kRows, args.queries - query0), mine = query0 + warp() * 16 + g;
            const KeyRange range = keys_of(args, place, query0, rows);
            barrier();
            copy_tile<T, kRows>(q, kStride, rows_of<T>(args, args.q, place.batch, place.head, query0), args.q.row, rows,
                                dim);
            copy_tile<T, kRows>(dout, kStride, rows_of<T>(args, args.dout, place.batch, place.head, query0),
                                args.dout.row, rows, value_dim);
            const RowStatistics<A> of_row(args, member * args.queries, mine, args.queries);
            for (int64_t key0 = first_key; key0 < last_key; key0 += kColumns) {
                if (key0 + kColumns <= range.first || key0 >= range.last)
                    continue;
                const int64_t here = smaller_of(kColumns, args.keys - key0);
                barrier();
                copy_tile<T, kColumns>(k, kStride, rows_of<T>(args, args.k, place.batch, kv_head, key0), args.k.row,
                                       here, dim);
                copy_tile<T, kColumns>(v, kStride, rows_of<T>(args, args.v, place.batch, kv_head, key0), args.v.row,
                                       here, value_dim);
                barrier();
                A s[kTiles][4] = {}, ds[kTiles][4] = {};
                multiply_rows<T, kTiles>(s, q.from(warp() * 16 * kStride), k, kStride, dim, args.tf32);
                multiply_rows<T, kTiles>(ds, dout.from(warp() * 16 * kStride), v, kStride, value_dim, args.tf32);
                change_to_gradients(
                    scores, false, false, s, ds, [&](int, int e) { return mine + e / 2 * 8; },
                    [&](int n, int e) { return key0 + n * 8 + 2 * t + e % 2; },
                    [&](int, int e) { return e < 2 ? of_row.lse[0] : of_row.lse[1]; },
                    [&](int, int e) { return e < 2 ? of_row.delta[0] : of_row.delta[1]; });
                NF_UNROLL
                for (int i = 0; i < kTiles * 4; ++i)
                    sum[i / 4][i % 4] += ds[i / 4][i % 4];
            }
        }
    }
    // One value a row of the bias' gradient where it has one key, and so on: the tile's rows and columns are added up.
    barrier();
    Shared<A> sums = SharedMemory().take<A>(Tile::kWarps * kColumns);
    auto write = [&](int64_t query, int64_t key, A value) {
        const int64_t at = (slice * args.bias_queries + query) * args.bias_keys + key;
        if (args.dbias.is_float)
            static_cast<float *>(const_cast<void *>(args.dbias.data))[at] = float(value);
        else
            store(static_cast<T *>(const_cast<void *>(args.dbias.data)), at, value);
    };
    if (one_key) {
        NF_UNROLL
        for (int e = 0; e < 4; ++e) {
            for (int n = 1; n < kTiles; ++n)
                sum[0][e] += sum[n][e];
        }
        for (int r = 0; r < 2; ++r) {
            A row = sum[0][2 * r] + sum[0][2 * r + 1];
            row += shuffle_xor(row, 1);
            row += shuffle_xor(row, 2);
            sum[0][2 * r] = row;
        }
        if (!one_query) {
            for (int r = 0; r < 2; ++r)
                if (t == 0 && first_query + warp() * 16 + g + 8 * r < args.queries)
                    write(first_query + warp() * 16 + g + 8 * r, 0, sum[0][2 * r]);
            return;
        }
        A all = sum[0][0] + sum[0][2];
        for (int mask = 4; mask < kWarp; mask *= 2)
            all += shuffle_xor(all, mask);
        if (lane() == 0)
            sums[warp()] = all;
        barrier();
        if (thread() == 0) {
            A total = 0;
            for (int i = 0; i < Tile::kWarps; ++i)
                total += sums[i];
            write(0, 0, total);
        }
        return;
    }
    if (one_query) {
        NF_UNROLL
        for (int n = 0; n < kTiles; ++n)
            for (int e = 0; e < 2; ++e) {
                A column = sum[n][e] + sum[n][2 + e];
                for (int mask = 4; mask < kWarp; mask *= 2)
                    column += shuffle_xor(column, mask);
                if (g == 0)
                    sums[warp() * kColumns + n * 8 + 2 * t + e] = column;
            }
        barrier();
        for (int j = thread(); j < kColumns; j += Tile::kThreads)
            if (first_key + j < args.keys) {
                A total = 0;
                for (int i = 0; i < Tile::kWarps; ++i)
                    total += sums[i * kColumns + j];
                write(0, first_key + j, total);
            }
        return;
    }
    NF_UNROLL
    for (int n = 0; n < kTiles; ++n)
        NF_UNROLL
    for (int e = 0; e < 4; ++e) {
        const int64_t query = first_query + warp() * 16 + g + e / 2 * 8, key = first_key + n * 8 + 2 * t + e % 2;
        if (query < args.queries && key < args.keys)
            write(query, key, sum[n][e]);
    }
}

} // namespace nf::cuda
