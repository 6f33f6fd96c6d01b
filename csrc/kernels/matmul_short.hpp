// Matrix products of a short depth: batches of small matrices, or the heads of attention, where packing would cost a
// good part of the product. Small products are multiplied where they lie, as libraries of them do (Heinecke, Henry,
// Hutchinson, Pabst, "LIBXSMM: accelerating small matrix multiplications by runtime code generation", SC 2016).
//
// A is read where it lies, whatever its strides, for its elements are broadcast one by one: a strip of its rows with
// the whole depth stays in the first-level cache while it meets all of B. So does a small B whose rows are contiguous,
// which is read where it lies too. Any other B is packed into panels, for columns of it would push each other out.
//
// Sums are the same chains as everywhere else in matmul, so the bits are the same.
#pragma once
#include "kernels/matmul_output.hpp"
#include "runtime/caches.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// A strip of A has at most this, and B where it is not packed: halves of a first-level cache of 32 KiB.
constexpr int64_t kShortBytes = 16 << 10;
template <class A> constexpr int64_t kShortDepth = kShortBytes / int64_t(kTileColumns<A> * sizeof(A));

template <class T> NF_INLINE bool reads_b_in_place(const MatmulArgs &args) {
    return args.b_col == 1 && args.k * args.n * int64_t(sizeof(T)) <= kShortBytes;
}

// Narrow types are widened as they are packed. Few rows make no use of a packed B.
template <class T> NF_INLINE bool has_short_depth(const MatmulArgs &args, int64_t few_rows) {
    if constexpr (!std::is_same_v<T, Acc<T>>)
        return false;
    else if (args.stored != Stored::none || args.k > kShortDepth<T>)
        return false;
    else
        return reads_b_in_place<T>(args) ||
               (args.m > few_rows && args.k * args.n * int64_t(sizeof(T)) <= runtime::second_level_cache() / 2);
}

// The output of a product of this size and more is fetched while a tile is multiplied. That of smaller ones is small
// beside A and B, or the hardware sees where it goes on: there the instructions would cost more (2% at 32 x 32).
constexpr int64_t kFarOutputBytes = 128 << 10;

// multiply_tile (tile.hpp) of an A with strides that are not known before.
template <class A, int ROWS, int VECTORS, bool FETCHES>
static void multiply_tile_in_place(int64_t depth, const A *a, int64_t a_row, int64_t a_col, const A *b, int64_t b_row,
                                   A *c, int64_t c_row, Store mode) {
    const RowsWithStrides<A, ROWS> rows(a, a_row, a_col);
    if constexpr (FETCHES)
        multiply_rows<A, ROWS, VECTORS>(depth, rows, b, b_row, c, c_row, mode,
                                        fetch_rows(depth, RowsInMemory{c, c_row * int64_t(sizeof(A))}));
    else
        multiply_rows<A, ROWS, VECTORS>(depth, rows, b, b_row, c, c_row, mode);
}

template <class A>
using TileInPlace = void (*)(int64_t depth, const A *a, int64_t a_row, int64_t a_col, const A *b, int64_t b_row, A *c,
                             int64_t c_row, Store mode);
template <class A, int VECTORS, bool FETCHES> NF_INLINE TileInPlace<A> tile_in_place_of_rows(int64_t rows) {
#define NF_TILE(r) multiply_tile_in_place<A, (r <= kTileRows ? r : 1), VECTORS, FETCHES && (r > kTileRows / 2)>
    static constexpr TileInPlace<A> table[] = {
        NF_TILE(1), NF_TILE(2), NF_TILE(3),  NF_TILE(4),  NF_TILE(5),  NF_TILE(6),  NF_TILE(7),
        NF_TILE(8), NF_TILE(9), NF_TILE(10), NF_TILE(11), NF_TILE(12), NF_TILE(13), NF_TILE(14),
    };
#undef NF_TILE
    return table[rows - 1];
}

// Bytes from the pool to pack so many columns of B. Few are packed into the stack, for a product of small matrices
// takes no longer than a call of the pool.
template <class A> NF_INLINE int64_t far_bytes(const MatmulArgs &args, int64_t columns) {
    const int64_t bytes = args.k * round_up(columns, kTileColumns<A>) * int64_t(sizeof(A));
    return bytes <= kShortBytes ? 0 : bytes;
}

// Rows [i0, i0 + rows) x columns [j0, j0 + columns) of the output. Panels [0, in_place) of B are read where they lie,
// those behind them are packed to `packed`.
template <class A>
void multiply_strips(const Plan<A, A> &plan, int64_t i0, int64_t rows, int64_t j0, int64_t columns, int64_t in_place,
                     A *packed) {
    constexpr int64_t NR = kTileColumns<A>;
    const MatmulArgs &args = plan.args;
    const int64_t depth = args.k;
    const A *a = plan.product.a + i0 * args.a_row, *b = plan.product.b + j0 * args.b_col;
    const int64_t panels = ceil_div(columns, NR), panel = depth * NR;
    for (int64_t p = in_place; p < panels; ++p)
        pack_panel<A, A>(depth, smaller(NR, columns - p * NR), b + p * NR * args.b_col, args.b_row, args.b_col,
                         packed + (p - in_place) * panel);
    alignas(kVectorBytes) A tile[kTileRows * NR];
    const bool far = args.m * args.n * int64_t(sizeof(A)) >= kFarOutputBytes;
    // Equal strips: a tile of a last few rows would wait for its own sums.
    const int64_t strips = ceil_div(rows, kTileRows), least = rows / strips, longer = rows % strips;
    for (int64_t strip = 0, i = 0, tile_rows; strip < strips; ++strip, i += tile_rows) {
        tile_rows = least + (strip < longer);
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t j = p * NR, width = smaller(NR, columns - j);
            const bool there = p < in_place;
            const A *of_b = there ? b + j : packed + (p - in_place) * panel;
            const bool direct = plan.direct && width == NR;
            const auto multiply = width <= kLanes<A> ? tile_in_place_of_rows<A, 1, false>(tile_rows)
                                  : direct && far    ? tile_in_place_of_rows<A, kTileVectors, kManyRegisters>(tile_rows)
                                                     : tile_in_place_of_rows<A, kTileVectors, false>(tile_rows);
            A *out = reinterpret_cast<A *>(plan.product.out) + (i0 + i) * args.out_row + j0 + j;
            multiply(depth, a + i * args.a_row, args.a_row, args.a_col, of_b, there ? args.b_row : NR,
                     direct ? out : tile, direct ? args.out_row : NR,
                     direct && args.accumulate ? Store::add : Store::write);
            if (direct)
                continue;
            if (plan.direct)
                put(tile, NR, tile_rows, width, out, args.out_row, args.accumulate);
            else
                finish<A, A>(args, plan.product, plan.bias, tile, NR, i0 + i, tile_rows, j0 + j, width);
        }
    }
}

// The same with memory for what is packed. Returns false where there is none.
template <class A> bool multiply_short(const Plan<A, A> &plan, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    const int64_t in_place = reads_b_in_place<A>(plan.args) ? columns / kTileColumns<A> : 0;
    const int64_t bytes = far_bytes<A>(plan.args, columns - in_place * kTileColumns<A>);
    if (bytes == 0) {
        alignas(kVectorBytes) A near[kShortBytes / sizeof(A)];
        multiply_strips<A>(plan, i0, rows, j0, columns, in_place, near);
        return true;
    }
    const Scratch<A> far(bytes / int64_t(sizeof(A)));
    if (!far)
        return false;
    multiply_strips<A>(plan, i0, rows, j0, columns, in_place, far.data);
    return true;
}

} // namespace
} // namespace nf::NUMFORMER_LEVEL
