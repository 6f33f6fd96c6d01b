// Attention's backward (T. Dao and others, "FlashAttention", 2022, appendix B.2), in two kernels, so that each gradient
// is summed by one block in one order and nothing is added atomically: one has blocks of queries and makes dq, one has
// blocks of keys and makes dk and dv. The price is that scores and dP are made twice: seven products in place of five.
//
//   P = exp(S - lse), F: dropout's factors (0 or 1 / (1 - p)), delta = rowsum(dO O) - dlse
//   dV = (F P)^T dO,  dS = P (F dO V^T - delta),  through = dS (1 - tanh^2 of the softcap)
//   dQ = scale through K,  dK = scale through^T Q, both summed over the query heads that share a key head
#pragma once
#include "cuda/kernels/attention_relative.hpp"
#include "cuda/kernels/packs.hpp"

namespace nf::cuda {

constexpr int kDeltaThreads = 256;
constexpr int kDeltaLanes = 8;                              // of a row: 64 16-bit elements at once
constexpr int kDeltaRows = kDeltaThreads / kDeltaLanes * 4; // of a block: rows of one head of one sample

// delta of each row. A block finds its head and sample once: to divide by 64-bit numbers takes longer than a row. Where
// rows are not at multiples of 16 bytes the same lanes take the same elements one by one.
template <class T> NF_KERNEL(kDeltaThreads) attention_delta(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    constexpr int kCount = kPack<T>;
    const int place = lane() % kDeltaLanes;
    const int64_t parts = (args.queries + kDeltaRows - 1) / kDeltaRows;
    for (int64_t i = block(); i < args.batches * args.heads * parts; i += blocks()) {
        const int64_t slice = i / parts, first = (i - slice * parts) * kDeltaRows;
        const int64_t batch = slice / args.heads, head = slice - batch * args.heads;
        const T *out = rows_of<T>(args, args.out, batch, head, first),
                *dout = rows_of<T>(args, args.dout, batch, head, first);
        const int rows = int(smaller_of(args.queries - first, int64_t(kDeltaRows)));
        // All lanes of a warp meet in the sums, whether or not they have a row.
        for (int begin = warp() * (kWarp / kDeltaLanes); begin < rows; begin += kDeltaThreads / kDeltaLanes) {
            const int n = begin + lane() / kDeltaLanes;
            A sum = 0;
            if (n < rows) {
                const T *x = out + n * args.out.row, *dx = dout + n * args.dout.row;
                const bool is_aligned =
                    (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(dx)) % sizeof(Words) == 0;
                for (int64_t j = place * kCount; j < args.value_dim; j += kDeltaLanes * kCount) {
                    if (j + kCount <= args.value_dim) {
                        A values[kCount], gradients[kCount];
                        load_pack(x + j, is_aligned, values);
                        load_pack(dx + j, is_aligned, gradients);
                        NF_UNROLL
                        for (int e = 0; e < kCount; ++e)
                            sum += values[e] * gradients[e];
                    } else
                        for (int64_t e = j; e < args.value_dim; ++e)
                            sum += load(x, e) * load(dx, e);
                }
            }
            NF_UNROLL
            for (int mask = kDeltaLanes / 2; mask > 0; mask /= 2)
                sum += shuffle_xor(sum, mask);
            if (n < rows && place == 0) {
                const int64_t row = slice * args.queries + first + n;
                static_cast<A *>(args.delta)[row] = args.dlse ? sum - static_cast<const A *>(args.dlse)[row] : sum;
            }
        }
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

// As forward, a block makes D columns of the gradients.
template <class T, int D, bool kRelative>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention_backward_queries(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kColumns = Tile::kColumns, kTiles = kColumns / 8;
    AttentionPlace place;
    if (!find_place(args, false, Tile::kRows, place, chunks_of(args.dim, D)))
        return;
    const int64_t kv_head = place.head / (args.heads / args.kv_heads), first = place.first;
    const int64_t rows = smaller_of(Tile::kRows, place.queries - first);
    const int column = place.chunk * D;
    SharedMemory memory;
    Strip<T, D, Tile::kRows> q(memory, args.dim), dout(memory, args.value_dim);
    Strip<T, D, kColumns> k(memory, args.dim), v(memory, args.value_dim);
    Band<T, D, kRelative> band(memory, args);
    q.point(rows_of<T>(args, args.q, place.batch, place.head, place.query_start + first), args.q.row, rows);
    dout.point(rows_of<T>(args, args.dout, place.batch, place.head, place.query_start + first), args.dout.row, rows);
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
        const Seen seen = scores.look(first, Tile::kRows, key0, kColumns);
        if (seen == Seen::nothing)
            continue;
        const int64_t here = smaller_of(kColumns, place.keys - key0);
        k.point(keys + key0 * args.k.row, args.k.row, here);
        v.point(values + key0 * args.v.row, args.v.row, here);
        band.point(place, place.head, first, key0);
        barrier();
        q.hold(0);
        k.hold(0);
        band.hold(0);
        dout.hold(0);
        v.hold(0);
        const bool sees = seen == Seen::all;
        bool careful = k.bring(0, !sees);
        A s[kTiles][4] = {}, ds[kTiles][4] = {};
        multiply_scores<T, D, kRelative>(s, q, k, q, band, false, args.tf32);
        multiply_values<T, D, kRelative>(ds, dout, v, args.tf32);
        change_to_gradients(
            scores, sees, true, s, ds, [&](int, int e) { return mine + e / 2 * 8; },
            [&](int n, int e) { return key0 + n * 8 + 2 * t + e % 2; },
            [&](int, int e) { return e < 2 ? of_row.lse[0] : of_row.lse[1]; },
            [&](int, int e) { return e < 2 ? of_row.delta[0] : of_row.delta[1]; });
        if (kInChunks<D, kRelative> && args.dim > D)
            careful = k.bring(column, !sees);
        multiply_weights<T, kTiles, D / 8>(dq, ds, k.tile, Tile::kStride, k.columns(column), careful, args.tf32);
        if constexpr (kRelative)
            band.add_to_queries(dq, ds, column);
    }
    NF_UNROLL
    for (int r = 0; r < 2; ++r) {
        const int64_t query = mine + 8 * r;
        if (query >= place.queries)
            continue;
        store_row(rows_of<T>(args, args.dq, place.batch, place.head, place.query_start + query) + column, dq, r,
                  k.columns(column), A(args.scale));
    }
}

// Row r of the fragments += sum times a bias of relative positions, which is added to each query. `sum`: of this lane's
// columns; then of all.
template <class T, int N>
NF_DEVICE void add_bias(Acc<T> (&x)[N][4], int r, Acc<T> &sum, const AttentionPerHead &bias, int64_t head, int64_t dim,
                        int column) {
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (sum == 0) // nobody looks
        return;
    NF_UNROLL
    for (int i = 0; i < 2 * N; ++i) {
        const int at = column + i / 2 * 8 + 2 * (lane() % 4) + i % 2;
        if (at < dim)
            x[i / 2][2 * r + i % 2] += sum * at_head<T>(bias, head * dim + at);
    }
}

template <class T, int D, bool kRelative>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention_backward_keys(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kColumns = Tile::kColumns, kTiles = kColumns / 8;
    AttentionPlace place; // its head is that of keys and values
    if (!find_place(args, true, Tile::kRows, place, chunks_of(larger_of(args.dim, args.value_dim), D)))
        return;
    const int64_t group = args.heads / args.kv_heads, first = place.first;
    const int64_t rows = smaller_of(Tile::kRows, place.keys - first);
    const int column = place.chunk * D;
    const bool of_k = column < args.dim, of_v = column < args.value_dim; // has the narrower one such columns?
    SharedMemory memory;
    Strip<T, D, Tile::kRows> k(memory, args.dim), v(memory, args.value_dim);
    Strip<T, D, kColumns> q(memory, args.dim), dout(memory, args.value_dim);
    Shared<A> lse = memory.take<A>(kColumns), delta = memory.take<A>(kColumns);
    Band<T, D, kRelative> band(memory, args);
    k.point(rows_of<T>(args, args.k, place.batch, place.head, place.key_start + first), args.k.row, rows);
    v.point(rows_of<T>(args, args.v, place.batch, place.head, place.key_start + first), args.v.row, rows);
    const int t = lane() % 4;
    const int64_t mine = first + warp() * 16 + lane() / 4;
    A dk[D / 8][4] = {}, dv[D / 8][4] = {};
    const KeyRange range = queries_of(args, place, first, rows);
    for (int64_t head = place.head * group; head < (place.head + 1) * group; ++head) {
        const T *queries = rows_of<T>(args, args.q, place.batch, head, place.query_start);
        const T *gradients = rows_of<T>(args, args.dout, place.batch, head, place.query_start);
        const int64_t row0 = (place.batch * args.heads + head) * args.queries + place.query_start;
        const Scores<T> scores(args, place, head);
        [[maybe_unused]] A sums[2] = {}; // of dS over the queries, of this lane's two keys and its columns
        for (int64_t query0 = range.first / kColumns * kColumns; query0 < range.last; query0 += kColumns) {
            const Seen seen = scores.look(query0, kColumns, first, Tile::kRows);
            if (seen == Seen::nothing)
                continue;
            const int64_t here = smaller_of(kColumns, place.queries - query0);
            q.point(queries + query0 * args.q.row, args.q.row, here);
            dout.point(gradients + query0 * args.dout.row, args.dout.row, here);
            band.point(place, head, query0, first);
            barrier();
            k.hold(0);
            q.hold(0);
            band.hold(0);
            v.hold(0);
            dout.hold(0);
            for (int i = thread(); i < kColumns; i += Tile::kThreads) {
                lse[i] = i < here ? static_cast<const A *>(args.lse)[row0 + query0 + i] : -infinity<A>();
                delta[i] = i < here ? static_cast<const A *>(args.delta)[row0 + query0 + i] : A(0);
            }
            const bool sees = seen == Seen::all;
            bool careful = barrier_any((q.odd() || dout.odd()) && !sees);
            A s[kTiles][4] = {}, ds[kTiles][4] = {}; // rows: keys, columns: queries
            multiply_scores<T, D, kRelative>(s, k, q, q, band, true, args.tf32);
            multiply_values<T, D, kRelative>(ds, v, dout, args.tf32);
            change_to_gradients(
                scores, sees, true, s, ds, [&](int n, int e) { return query0 + n * 8 + 2 * t + e % 2; },
                [&](int, int e) { return mine + e / 2 * 8; }, [&](int n, int e) { return lse[n * 8 + 2 * t + e % 2]; },
                [&](int n, int e) { return delta[n * 8 + 2 * t + e % 2]; });
            if (of_v) {
                if (kInChunks<D, kRelative> && args.value_dim > D)
                    careful = dout.bring(column, !sees);
                multiply_weights<T, kTiles, D / 8>(dv, s, dout.tile, Tile::kStride, dout.columns(column), careful,
                                                   args.tf32);
            }
            if (of_k) {
                if (kInChunks<D, kRelative> && larger_of(args.dim, args.value_dim) > D)
                    careful = q.bring(column, !sees);
                multiply_weights<T, kTiles, D / 8>(dk, ds, q.tile, Tile::kStride, q.columns(column), careful,
                                                   args.tf32);
            }
            if constexpr (kRelative)
                for (int i = 0; i < kTiles * 4; ++i)
                    sums[i % 4 / 2] += ds[i / 4][i % 4];
        }
        if constexpr (kRelative)
            for (int r = 0; r < 2; ++r) {
                add_bias<T>(dk, r, sums[r], args.relative.u, head, args.dim, column);
                if (args.relative.sum_keys && t == 0 && column == 0 && mine + 8 * r < place.keys)
                    static_cast<A *>(
                        args.relative.sum_keys)[(place.batch * args.heads + head) * args.keys + mine + 8 * r] = sums[r];
            }
    }
    NF_UNROLL
    for (int r = 0; r < 2; ++r) {
        const int64_t key = mine + 8 * r;
        if (key >= place.keys)
            continue;
        if (of_k)
            store_row(rows_of<T>(args, args.dk, place.batch, place.head, place.key_start + key) + column, dk, r,
                      k.columns(column), A(args.scale));
        if (of_v)
            store_row(rows_of<T>(args, args.dv, place.batch, place.head, place.key_start + key) + column, dv, r,
                      v.columns(column), A(1));
    }
}

// The gradient of the bias: dS, summed over what the bias is broadcast over. A block owns a tile of the gradient (a row
// of tiles or a column where the bias has one key or one query) and goes through all that add to it, in order.
template <class T, int D, bool kRelative>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention_bias_backward(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kColumns = Tile::kColumns, kTiles = kColumns / 8, kRows = Tile::kRows;
    const bool one_query = args.bias_queries == 1, one_key = args.bias_keys == 1;
    const int64_t across = one_key ? 1 : ceil_div(args.keys, kColumns),
                  down = one_query ? 1 : ceil_div(args.queries, kRows);
    const int64_t key_tile = block() % across, query_tile = block() / across % down, slice = block() / across / down;
    const int64_t first_query = query_tile * kRows, last_query = one_query ? args.queries : first_query + 1;
    const int64_t first_key = key_tile * kColumns, last_key = one_key ? args.keys : first_key + 1;
    AttentionPlace place = whole_place(args);
    SharedMemory memory;
    Strip<T, D, kRows> q(memory, args.dim), dout(memory, args.value_dim);
    Strip<T, D, kColumns> k(memory, args.dim), v(memory, args.value_dim);
    Band<T, D, kRelative> band(memory, args);
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
            q.point(rows_of<T>(args, args.q, place.batch, place.head, query0), args.q.row, rows);
            dout.point(rows_of<T>(args, args.dout, place.batch, place.head, query0), args.dout.row, rows);
            const RowStatistics<A> of_row(args, member * args.queries, mine, args.queries);
            for (int64_t key0 = first_key; key0 < last_key; key0 += kColumns) {
                if (key0 + kColumns <= range.first || key0 >= range.last ||
                    scores.look(query0, kRows, key0, kColumns) == Seen::nothing)
                    continue;
                const int64_t here = smaller_of(kColumns, args.keys - key0);
                k.point(rows_of<T>(args, args.k, place.batch, kv_head, key0), args.k.row, here);
                v.point(rows_of<T>(args, args.v, place.batch, kv_head, key0), args.v.row, here);
                band.point(place, place.head, query0, key0);
                barrier();
                q.hold(0);
                k.hold(0);
                band.hold(0);
                dout.hold(0);
                v.hold(0);
                barrier();
                A s[kTiles][4] = {}, ds[kTiles][4] = {};
                multiply_scores<T, D, kRelative>(s, q, k, q, band, false, args.tf32);
                multiply_values<T, D, kRelative>(ds, dout, v, args.tf32);
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
