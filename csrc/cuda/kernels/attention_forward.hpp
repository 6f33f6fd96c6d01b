// Attention's forward (attention.hpp).
#pragma once
#include "cuda/kernels/attention_relative.hpp"

namespace nf::cuda {

// A block makes D columns of the output: all of them, unless values are wider; then each chunk of columns has a block,
// which computes the scores again.
template <class T, int D, bool kRelative>
NF_KERNEL((AttentionTile<T, D>::kThreads))
attention(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    constexpr int kColumns = Tile::kColumns, kTiles = kColumns / 8;
    AttentionPlace place;
    if (!find_place(args, false, Tile::kRows, place, chunks_of(args.value_dim, D)))
        return;
    const int64_t kv_head = place.head / (args.heads / args.kv_heads), first = place.first;
    const int64_t rows = smaller_of(Tile::kRows, place.queries - first);
    const int column = place.chunk * D;
    SharedMemory memory;
    Strip<T, D, Tile::kRows> q(memory, args.dim);
    Strip<T, D, kColumns> k(memory, args.dim), v(memory, args.value_dim);
    Band<T, D, kRelative> band(memory, args);
    q.point(rows_of<T>(args, args.q, place.batch, place.head, place.query_start + first), args.q.row, rows);
    const T *keys = rows_of<T>(args, args.k, place.batch, kv_head, place.key_start);
    const T *values = rows_of<T>(args, args.v, place.batch, kv_head, place.key_start);
    const Scores<T> scores(args, place, place.head);

    const int g = lane() / 4, t = lane() % 4;
    const int64_t mine = first + warp() * 16 + g;             // this lane's rows: mine and mine + 8
    A top[2] = {-infinity<A>(), -infinity<A>()}, sum[2] = {}; // the sum is that of this lane's columns
    if (args.sinks.data) {                                    // one more score, without a value
        const A sink = at_head<T>(args.sinks, place.head);
        for (int r = 0; r < 2; ++r) {
            top[r] = finite(sink) ? sink : -infinity<A>();
            sum[r] = t != 0 || sink == -infinity<A>() ? A(0) : finite(sink) ? A(1) : not_a_number<A>();
        }
    }
    A o[D / 8][4] = {};

    const KeyRange range = keys_of(args, place, first, rows);
    for (int64_t key0 = range.first / kColumns * kColumns; key0 < range.last; key0 += kColumns) {
        const Seen seen = scores.look(first, Tile::kRows, key0, kColumns);
        if (seen == Seen::nothing)
            continue;
        const int64_t here = smaller_of(kColumns, place.keys - key0);
        k.point(keys + key0 * args.k.row, args.k.row, here);
        v.point(values + key0 * args.v.row, args.v.row, here);
        band.point(place, place.head, first, key0);
        barrier(); // the tile before has been read
        q.hold(0);
        k.hold(0);
        band.hold(0);
        v.hold(column);
        const bool sees = seen == Seen::all;
        const bool careful = v.bring(column, !sees);
        A s[kTiles][4] = {};
        multiply_scores<T, D, kRelative>(s, q, k, q, band, false, args.tf32);
        if (sees && scores.plain()) {
            NF_UNROLL
            for (int i = 0; i < kTiles * 4; ++i)
                s[i / 4][i % 4] *= scores.scale();
        } else {
            change_each(s, [&](int n, int e, A &x) {
                A cap_slope;
                if (!scores.score(mine + e / 2 * 8, key0 + n * 8 + 2 * t + e % 2, sees, x, cap_slope))
                    x = -infinity<A>();
            });
        }
        A highest[2] = {top[0], top[1]};
        NF_UNROLL
        for (int i = 0; i < kTiles * 4; ++i)
            highest[i % 4 / 2] = larger_of(highest[i % 4 / 2], s[i / 4][i % 4]);
        A shift[2];
        NF_UNROLL
        for (int r = 0; r < 2; ++r) {
            highest[r] = larger_of(highest[r], shuffle_xor(highest[r], 1)); // the four lanes of a row
            highest[r] = larger_of(highest[r], shuffle_xor(highest[r], 2));
            shift[r] = highest[r] == -infinity<A>() ? A(0) : highest[r]; // nothing seen yet
            const A factor = exp_of_difference(top[r], shift[r]);
            top[r] = highest[r];
            sum[r] *= factor;
            NF_UNROLL
            for (int n = 0; n < D / 8; ++n) {
                o[n][2 * r] *= factor;
                o[n][2 * r + 1] *= factor;
            }
        }
        NF_UNROLL
        for (int i = 0; i < kTiles * 4; ++i) {
            const A p = exp_of_difference(s[i / 4][i % 4], shift[i % 4 / 2]);
            s[i / 4][i % 4] = p;
            sum[i % 4 / 2] += p;
        }
        if (scores.drops())
            change_each(s,
                        [&](int n, int e, A &x) { x *= scores.kept(mine + e / 2 * 8, key0 + n * 8 + 2 * t + e % 2); });
        multiply_weights<T, kTiles, D / 8>(o, s, v.tile, Tile::kStride, v.columns(column), careful, args.tf32);
    }

    NF_UNROLL
    for (int r = 0; r < 2; ++r) {
        sum[r] += shuffle_xor(sum[r], 1);
        sum[r] += shuffle_xor(sum[r], 2);
        const int64_t query = mine + 8 * r;
        if (query >= place.queries)
            continue;
        const A inverse = sum[r] == 0 ? A(0) : A(1) / sum[r]; // nothing to attend to: zeros
        store_row(rows_of<T>(args, args.out, place.batch, place.head, place.query_start + query) + column, o, r,
                  v.columns(column), inverse);
        if (t == 0 && args.lse && column == 0)
            static_cast<A *>(
                args.lse)[(place.batch * args.heads + place.head) * args.queries + place.query_start + query] =
                sum[r] == 0 ? -infinity<A>() : top[r] + log_of(sum[r]);
    }
}

} // namespace nf::cuda
