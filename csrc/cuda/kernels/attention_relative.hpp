// Relative positions in attention's tiles. A tile of kRows queries from i0 on and as many keys from j0 on needs the
// rows of r for the distances from i0 - j0 + kRows - 1 down to i0 - j0 - kRows + 1. They are taken in that order, the
// order of keys: row s is that of key j and query i with s = (j - j0) - (i - i0) + kRows - 1. So the 16 queries of a
// warp meet a band of kRows + 15 rows: one product of fragments, from which each query reads its part, one column to
// the left of that of the query before. In the backward dS is spread out the same way, with zeros beside.
#pragma once
#include "cuda/kernels/attention.hpp"

namespace nf::cuda {

constexpr int kRelativeThreads = 256;

template <class T> NF_DEVICE const T *row_of_r(const AttentionRelative &relative, int64_t head, int64_t row) {
    return static_cast<const T *>(relative.r.data) + head * relative.r.head + row * relative.r.row;
}

// What is added to the products whatever the query: u . k of each key, then v . r of each row; a warp each.
template <class T> NF_KERNEL(kRelativeThreads) attention_relative_products(NF_ARGS AttentionArgs args) {
    typedef Acc<T> A;
    const AttentionRelative &relative = args.relative;
    const int64_t of_keys = args.batches * args.heads * args.keys, all = of_keys + args.heads * relative.length;
    for (int64_t i = block() * (kRelativeThreads / kWarp) + warp(); i < all;
         i += blocks() * (kRelativeThreads / kWarp)) {
        const bool is_key = i < of_keys;
        const int64_t of_head = is_key ? args.keys : relative.length, place = is_key ? i : i - of_keys;
        const int64_t head = place / of_head % args.heads;
        const T *row = is_key ? rows_of<T>(args, args.k, place / of_head / args.heads,
                                           head / (args.heads / args.kv_heads), place % of_head)
                              : row_of_r<T>(relative, head, place % of_head);
        A sum = 0;
        for (int64_t d = lane(); d < args.dim; d += kWarp)
            sum += load(row, d) * at_head<T>(is_key ? relative.u : relative.v, head * args.dim + d);
        sum = warp_sum(sum);
        if (lane() == 0)
            static_cast<A *>(is_key ? relative.of_keys : relative.of_rows)[place] = sum;
    }
}

// The rows of r beside a tile of pairs. Without relative positions it is nothing.
template <class T, int D, bool kRelative> class Band {
  public:
    static constexpr int64_t kBytes = 0;
    NF_DEVICE Band(SharedMemory &, const AttentionArgs &) {}
    NF_DEVICE void point(const AttentionPlace &, int64_t, int64_t, int64_t) {}
    NF_DEVICE void hold(int) {}
};

template <class T, int D> class Band<T, D, true> {
    typedef Acc<T> A;
    typedef AttentionTile<T, D> Tile;
    static constexpr int kRows = Tile::kRows, kTiles = kRows / 8, kBandTiles = kTiles + 2;
    static constexpr int kStride = kRows + 16 + 4; // of a query's part of the band, as A
    static_assert(Tile::kColumns == kRows, "a tile of as many queries as keys");

  public:
    static constexpr int64_t kBytes = shared_bytes<T>(2 * kRows * Tile::kStride) + shared_bytes<A>(kRows * kStride);
    NF_DEVICE Band(SharedMemory &memory, const AttentionArgs &args)
        : args_(args), r_(memory, args.dim), band_(memory.take<A>(kRows * kStride)) {}

    // The tile of the queries from query0 on and the keys from key0 on.
    NF_DEVICE void point(const AttentionPlace &place, int64_t head, int64_t query0, int64_t key0) {
        const AttentionRelative &relative = args_.relative;
        const int64_t first = relative.origin + place.diagonal + query0 - key0 + kRows - 1; // the row of s = 0
        r_.point(row_of_r<T>(relative, head, first), -relative.r.row, first + 1, first - relative.length + 1);
    }
    NF_DEVICE void hold(int first) { r_.hold(first); }

    // sums += (16 queries of this warp) r^T, of the columns that are held, of q too.
    NF_DEVICE void multiply(A (&sums)[kBandTiles][4], Shared<T> q, int columns) const {
        multiply_rows<T, kBandTiles>(sums, q.from(warp() * 16 * Tile::kStride), mine(), Tile::kStride, columns,
                                     args_.tf32);
    }
    // s += what the pairs of the tile have of the products. Rows of s are the warp's queries, or keys.
    NF_DEVICE void add(A (&s)[kTiles][4], const A (&sums)[kBandTiles][4], bool rows_are_keys) const {
        NF_UNROLL
        for (int i = 0; i < kBandTiles * 4; ++i)
            band_[row_of(i) * kStride + column_of(i)] = sums[i / 4][i % 4];
        if (rows_are_keys)
            barrier();
        else
            warp_barrier();
        NF_UNROLL
        for (int i = 0; i < kTiles * 4; ++i)
            s[i / 4][i % 4] += rows_are_keys ? band_[at(column_of(i), row_of(i))] : band_[at(row_of(i), column_of(i))];
    }
    // dq += dS r, the columns of r from `first` on.
    template <int N> NF_DEVICE void add_to_queries(A (&dq)[N][4], const A (&ds)[kTiles][4], int first) {
        const bool careful = r_.bring(first, true); // a row beside the band, of weight 0, may be any pair's
        for (int i = lane(); i < 16 * kStride; i += kWarp)
            band_[warp() * 16 * kStride + i] = A(0);
        warp_barrier();
        NF_UNROLL
        for (int i = 0; i < kTiles * 4; ++i)
            band_[at(row_of(i), column_of(i))] = ds[i / 4][i % 4];
        warp_barrier();
        A weights[kBandTiles][4];
        NF_UNROLL
        for (int i = 0; i < kBandTiles * 4; ++i)
            weights[i / 4][i % 4] = band_[row_of(i) * kStride + column_of(i)];
        multiply_weights<T, kBandTiles, N>(dq, weights, mine(), Tile::kStride, r_.columns(first), careful, args_.tf32);
    }

  private:
    // Where element i of this lane's fragments lies in the tile.
    NF_DEVICE static int row_of(int i) { return warp() * 16 + lane() / 4 + i % 4 / 2 * 8; }
    NF_DEVICE static int column_of(int i) { return i / 4 * 8 + 2 * (lane() % 4) + i % 2; }
    NF_DEVICE static int at(int query, int key) { return query * kStride + key - query % 16 + 15; }
    // The rows that the warp's queries meet.
    NF_DEVICE Shared<T> mine() const { return r_.tile.from((kRows - 16 * (warp() + 1)) * Tile::kStride); }

    const AttentionArgs &args_;
    Strip<T, D, 2 * kRows> r_;
    Shared<A> band_;
};

// s += a b^T over all columns of a and b. What is held first is used as it is. more(first): with the columns that are
// held then; hold(first) brings what it needs.
template <class T, int D, bool kChunks, int N, class Left, class Right, class Hold, class More>
NF_DEVICE void multiply_chunks(Acc<T> (&s)[N][4], Left &a, Right &b, bool tf32, Hold hold, More more) {
    constexpr int kStride = AttentionTile<T, D>::kStride;
    const int end = kChunks ? a.width() : 1;
    NF_NO_UNROLL
    for (int first = 0; first < end; first += D) {
        if (kChunks && (!a.holds(first) || !b.holds(first))) {
            barrier();
            a.hold(first);
            b.hold(first);
            hold(first);
            barrier();
        }
        multiply_rows<T, N>(s, a.tile.from(warp() * 16 * kStride), b.tile, kStride, a.columns(first), tf32);
        more(first);
    }
}
// Products of queries and keys, a and b, or b and a; with what relative positions add.
template <class T, int D, bool kRelative, int N, class Left, class Right, class Queries>
NF_DEVICE void multiply_scores(Acc<T> (&s)[N][4], Left &a, Right &b, const Queries &queries,
                               Band<T, D, kRelative> &band, bool rows_are_keys, bool tf32) {
    if constexpr (kRelative) {
        Acc<T> of_rows[N + 2][4] = {};
        multiply_chunks<T, D, true>(
            s, a, b, tf32, [&](int first) { band.hold(first); },
            [&](int first) { band.multiply(of_rows, queries.tile, queries.columns(first)); });
        band.add(s, of_rows, rows_are_keys);
    } else {
        multiply_chunks<T, D, kInChunks<D, false>>(s, a, b, tf32, [](int) {}, [](int) {});
    }
}
// ... of gradients of outputs and values.
template <class T, int D, bool kRelative, int N, class Left, class Right>
NF_DEVICE void multiply_values(Acc<T> (&s)[N][4], Left &a, Right &b, bool tf32) {
    multiply_chunks<T, D, kInChunks<D, kRelative>>(s, a, b, tf32, [](int) {}, [](int) {});
}

} // namespace nf::cuda
