// Relative positions as in Transformer-XL (Dai et al., 2019, section 3.3): (q_i + v) . r_x, x = middle + i - j, is
// added to the product of query i and key j, without an N x M matrix.
//
// The rows of r that a pattern needs are taken in the order of keys, the farthest distance first: column t is row
// first + count - 1 - t of r, and pair (i, j) reads column t = j - i + constant. So a strip of queries and a block of
// keys need a band of (keys + queries - 1) columns: one product of register tiles, from which each query reads its
// part, one column to the left of that of the query before. Backward the same skew, transposed: dS is read as a matrix
// of queries and columns t by a row stride of one more, with zeros beside each row.
#pragma once
#include "kernels/attention.hpp"

namespace nf::NUMFORMER_LEVEL {

constexpr int kBandColumns = 576;              // the widest block of keys, kTileRows - 1, and what whole panels add
constexpr int kBandStride = kBandColumns + 16; // rows 2 KiB apart would share cache sets
constexpr int64_t kBandSize = kTileRows * kBandStride;

// The column that a pair reads; outside [0, count) for pairs that the pattern forbids.
NF_INLINE int64_t relative_column(const AttentionRelative &relative, int64_t query, int64_t key) {
    return key - query + relative.first + relative.count - 1 - relative.middle;
}
template <class T> NF_INLINE const T *relative_of(const AttentionRelative &relative, int64_t head) {
    return static_cast<const T *>(relative.r) + head * relative.head;
}
// Column 0; the next ones are at strides of -row.
template <class T> NF_INLINE const T *first_column(const AttentionRelative &relative, int64_t head) {
    return relative_of<T>(relative, head) + (relative.first + relative.count - 1) * relative.row;
}

// to[i] = q_i + bias, contiguous rows.
template <class A, class T>
static void add_to_queries(const T *q, int64_t rows, int64_t dim, int64_t row, const double *bias, A *to) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t d = 0; d < dim; ++d)
            to[i * dim + d] = A(load_one(q + i * row + d)) + A(bias[d]);
}

// The needed rows of r as the right operand of scores.
template <class A> NF_INLINE int64_t relative_panels_size(const AttentionArgs &args) {
    return args.relative.r ? round_up(args.relative.count, kTileColumns<A>) * args.dim : 0;
}
template <class A, class T> NF_INLINE void pack_relative(const AttentionArgs &args, int64_t head, A *panels) {
    const AttentionRelative &relative = args.relative;
    pack_keys<A, T>(first_column<T>(relative, head), relative.count, args.dim, -relative.row, panels);
}

// scores[i][j] += (q_i + v) . r of the pair, for a packed strip of queries + v and the keys [key0, key0 + width). Pairs
// that need no row of r get any number: they are masked. `band`: kBandSize.
template <class A>
static void add_relative(const AttentionArgs &args, const A *strip, const A *panels, int64_t query, int64_t rows,
                         int64_t key0, int64_t width, A *band, A *scores, int64_t scores_row) {
    constexpr int64_t NR = kTileColumns<A>;
    const AttentionRelative &relative = args.relative;
    // Whole vectors: what is added behind the last key is masked, but must be a number, for softcap's slope there is
    // multiplied by 0.
    const int64_t begin = relative_column(relative, query + rows - 1, key0),
                  end = relative_column(relative, query, key0 + round_up(width, kLanes<A>));
    const int64_t begin_panel = (begin - (begin < 0 ? NR - 1 : 0)) / NR * NR; // rounded down
    for (int64_t t = begin_panel; t < end; t += NR) {
        A *to = band + (t - begin_panel);
        if (t >= 0 && t < relative.count)
            tile_for<A, InPanels>(rows, end - t)(args.dim, strip, panels + t * args.dim, NR, to, kBandStride,
                                                 Store::write);
        else
            for (int64_t i = 0; i < rows; ++i)
                memset(to + i * kBandStride, 0, size_t(NR) * sizeof(A));
    }
    for (int64_t i = 0; i < rows; ++i) {
        const A *from = band + i * kBandStride + relative_column(relative, query + i, key0) - begin_panel;
        A *row = scores + i * scores_row;
        for (int64_t j = 0; j < width; j += kLanes<A>)
            store(row + j, load(row + j) + load(from + j));
    }
}

} // namespace nf::NUMFORMER_LEVEL
