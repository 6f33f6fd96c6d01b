// The gradients of relative positions. With G_ix = through_ij of the pair whose row of r is x (attention_backward.hpp),
//
//   dr = scale G^T (Q + v),   du = scale sum of through_ij k_j,   dv = scale sum of G_ix r_x
//
// over the pairs and the samples. A block of the kernel here owns kRows rows of dr: it goes through the samples and
// their queries in order, and makes dS again for the keys that meet these rows: two tiles for each tile of queries. The
// sums over pairs that u and v are multiplied by, or that multiply k and r, are kept on the way.
#pragma once
#include "cuda/kernels/attention_backward.hpp"

namespace nf::cuda {

template <class T, int D>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention_relative_backward(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kRows = Tile::kRows, kTiles = kRows / 8, kSpread = kRows + 4;
    const AttentionRelative &relative = args.relative;
    const int64_t tiles = ceil_div(relative.length, kRows), number = block() / chunks_of(args.dim, D);
    const int64_t x0 = number % tiles * kRows;
    const int column = int(block() % chunks_of(args.dim, D)) * D;
    AttentionPlace place = whole_place(args);
    place.head = number / tiles;
    const int64_t kv_head = place.head / (args.heads / args.kv_heads), middle = relative.origin + place.diagonal;
    SharedMemory memory;
    Strip<T, D, kRows> q(memory, args.dim), k(memory, args.dim), dout(memory, args.value_dim),
        v(memory, args.value_dim);
    Band<T, D, true> band(memory, args);
    Shared<A> spread = memory.take<A>(kRows * kSpread); // G of a tile of queries
    const int t = lane() % 4, row = warp() * 16 + lane() / 4;
    A dr[D / 8][4] = {}, sums[2] = {};
    // The queries that some of these rows join to a key.
    const int64_t first = larger_of(int64_t(0), x0 - middle) / kRows * kRows,
                  last = smaller_of(args.queries, args.keys + x0 + kRows - 1 - middle);
    for (place.batch = 0; place.batch < args.batches; ++place.batch) {
        place.sequence = place.batch;
        const Scores<T> scores(args, place, place.head);
        for (int64_t query0 = first; query0 < last; query0 += kRows) {
            const int64_t rows = smaller_of(kRows, args.queries - query0), mine = query0 + row;
            q.point(rows_of<T>(args, args.q, place.batch, place.head, query0), args.q.row, rows);
            dout.point(rows_of<T>(args, args.dout, place.batch, place.head, query0), args.dout.row, rows);
            const RowStatistics<A> of_row(args, (place.batch * args.heads + place.head) * args.queries, mine,
                                          args.queries);
            for (int half = 0; half < 2; ++half) {
                const int to_column = kRows - 1 - half * kRows;        // from i - j within the tile
                const int64_t key0 = middle + query0 - x0 - to_column; // may lie before the first key
                const int64_t begin = -key0, end = args.keys - key0;
                k.point(rows_of<T>(args, args.k, place.batch, kv_head, key0), args.k.row, end, begin);
                v.point(rows_of<T>(args, args.v, place.batch, kv_head, key0), args.v.row, end, begin);
                band.point(place, place.head, query0, key0);
                barrier();
                q.hold(0);
                k.hold(0);
                band.hold(0);
                dout.hold(0);
                v.hold(0);
                barrier();
                A s[kTiles][4] = {}, ds[kTiles][4] = {};
                multiply_scores<T, D, true>(s, q, k, q, band, false, args.tf32);
                multiply_values<T, D, true>(ds, dout, v, args.tf32);
                change_to_gradients(
                    scores, false, true, s, ds, [&](int, int e) { return mine + e / 2 * 8; },
                    [&](int n, int e) {
                        const int64_t key = key0 + n * 8 + 2 * t + e % 2;
                        return key < 0 ? args.keys : key; // none, like those behind the last one
                    },
                    [&](int, int e) { return e < 2 ? of_row.lse[0] : of_row.lse[1]; },
                    [&](int, int e) { return e < 2 ? of_row.delta[0] : of_row.delta[1]; });
                NF_UNROLL
                for (int i = 0; i < kTiles * 4; ++i) {
                    const int query = row + i % 4 / 2 * 8, x = query - (i / 4 * 8 + 2 * t + i % 2) + to_column;
                    if (x >= 0 && x < kRows)
                        spread[query * kSpread + x] = ds[i / 4][i % 4];
                }
            }
            const bool careful = q.bring(column, true);
            A weights[kTiles][4]; // rows: those of r, columns: queries
            NF_UNROLL
            for (int i = 0; i < kTiles * 4; ++i) {
                const A weight = spread[(i / 4 * 8 + 2 * t + i % 2) * kSpread + row + i % 4 / 2 * 8];
                weights[i / 4][i % 4] = weight;
                sums[i % 4 / 2] += weight;
            }
            multiply_weights<T, kTiles, D / 8>(dr, weights, q.tile, Tile::kStride, q.columns(column), careful,
                                               args.tf32);
        }
    }
    for (int r = 0; r < 2; ++r) {
        add_bias<T>(dr, r, sums[r], relative.v, place.head, args.dim, column);
        const int64_t x = x0 + row + 8 * r, to = place.head * relative.length + x;
        if (x >= relative.length)
            continue;
        store_row(static_cast<T *>(relative.dr) + to * args.dim + column, dr, r, q.columns(column), A(args.scale));
        if (t == 0 && column == 0)
            static_cast<A *>(relative.sum_rows)[to] = sums[r];
    }
}

// du and dv as sums of rows: of keys and of r, by their sums of dS. Columns are those of all heads.
template <class T> struct WeightedRows {
    AttentionArgs args;
    bool of_keys;
    NF_DEVICE Acc<T> operator()(int64_t row, int64_t column, int64_t) const {
        typedef Acc<T> A;
        const AttentionRelative &relative = args.relative;
        const int64_t head = column / args.dim, d = column % args.dim;
        A weight;
        const T *x;
        if (of_keys) {
            const int64_t batch = row / args.keys, key = row % args.keys;
            weight = static_cast<const A *>(relative.sum_keys)[(batch * args.heads + head) * args.keys + key];
            x = rows_of<const T>(args, args.k, batch, head / (args.heads / args.kv_heads), key);
        } else {
            weight = static_cast<const A *>(relative.sum_rows)[head * relative.length + row];
            x = row_of_r<T>(relative, head, row);
        }
        return weight == 0 ? A(0) : A(args.scale) * weight * load(x, d); // nobody sees what is not looked at
    }
};

} // namespace nf::cuda
