// The register tile that matmul and attention are made of, and the packing that feeds it.
//
//   tile (rows x columns) = A (rows x depth) @ B (depth x columns)
//
// A tile is at most kTileRows x kTileColumns, all of it in registers: per step of depth kTileVectors loads of B, one
// broadcast of A a row, rows * kTileVectors fused multiply-adds. With 32 registers 14 x 2 accumulators + 2 of B + 1
// broadcast = 31 are used; 28 multiply-adds take 14 cycles on two units, their latency of 4 cycles needs 8 in flight.
// With 16 registers 6 x 2 + 2 + 1 = 15.
//
// Operands are elements of the type of the sums or, at a level with vdpbf16ps, pairs of bfloat16 elements along the
// depth (bf16_pair): then a step of the tile is two of the depth, at the same count of instructions.
//
// Every element of a tile is one chain of multiply-adds in the order of depth, whatever the size of the tile: edges
// and interior of a matrix, and any division of it among threads, give the same bits.
//
// At a level with AMX, pairs are multiplied by its matrix registers instead: 2 x 2 of them, 16 x 16 sums each, see
// simd/matrix.hpp.
#pragma once
#include "kernels/level.hpp"
#include "simd/matrix.hpp"

namespace nf::NUMFORMER_LEVEL {

#if defined(__AVX512F__) || defined(NUMFORMER_AARCH64)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
constexpr bool kManyRegisters = kTileRows > 6; // 32
constexpr int kTileVectors = 2;
template <class A> constexpr int kTileColumns = kTileVectors * kLanes<A>;

// What elements T are multiplied as: elements of the type of their sums or, with an instruction for them, pairs of
// bfloat16.
template <class T> struct OperandOf {
    typedef Acc<T> type;
};
#if defined(__AVX512BF16__)
template <> struct OperandOf<bf16> {
    typedef bf16_pair type;
};
#endif

// Whether operands E are multiplied by matrix registers; what a scope that does it holds; and rows of a strip of A that
// is multiplied at once.
template <class E> struct Registers {};
#if defined(__AMX_BF16__)
template <> struct Registers<bf16_pair> : MatrixRegisters {};
template <class E> constexpr bool kByMatrices = kElements<E> == 2;
#else
template <class E> constexpr bool kByMatrices = false;
#endif
template <class E> constexpr int kStripRows = kByMatrices<E> ? 32 : kTileRows;

// Where element (i, k) of A lies: a[i * ROW + k * STEP]. Constants, so that the compiler addresses all rows from one
// register.
//   InPanels:        packed with depth outermost, kTileRows elements a step
//   InRows<S>:       rows of stride S
//   InColumns<S>:    the transpose of such rows
struct InPanels {
    static constexpr int64_t row = 1, step = kTileRows;
};
template <int S> struct InRows {
    static constexpr int64_t row = S, step = 1;
};
template <int S> struct InColumns {
    static constexpr int64_t row = 1, step = S;
};

// How a strip is packed whose depth cannot be read where it lies: matrix registers are filled with rows.
template <class E, int S> using Packed = std::conditional_t<kByMatrices<E>, InRows<S>, InPanels>;

enum class Store { write, add };

// What a tile reads of A, step after step of the depth: rows of a layout, and rows with strides that are not known
// before. Of these three share a register for their address: 14 of them, or their strides, would leave none for
// anything else. Elements by reference: a pair by value is taken apart and put together again, then broadcast from a
// register.
template <class E, class Layout> struct RowsOfLayout {
    const E *a;
    inline const E &operator[](int i) const { return a[i * Layout::row]; }
    inline void next() { a += Layout::step; }
};
template <class E, int ROWS> struct RowsWithStrides {
    static constexpr int kGroups = (ROWS + 2) / 3;
    const E *group[kGroups];
    int64_t row, step;
    inline RowsWithStrides(const E *a, int64_t a_row, int64_t a_step) : row(a_row), step(a_step) {
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g)
            group[g] = a + 3 * g * a_row;
    }
    inline const E &operator[](int i) const { return group[i / 3][i % 3 * row]; }
    inline void next() {
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g)
            group[g] += step;
    }
};

// What a tile fetches into the first-level cache with each step of its depth. Nothing; or rows and columns of COUNT
// arrays, as many as a whole tile has, for it or what follows it: an eighth of a row with each step, or every few of
// them. All at once the lines, 28 an array, would keep those of B from coming.
struct FetchNothing {
    inline void next() {}
};
struct RowsInMemory {
    const void *first;
    int64_t row_bytes;
};
template <int COUNT> struct FetchRows {                                      // the first array is going to be written
    static constexpr int kFraction = 16, kEighths = 3;                       // bits of `at`
    static constexpr int64_t kEighthBytes = kTileVectors * kVectorBytes / 7; // apart: the last one reaches the end
    RowsInMemory rows[COUNT];
    int64_t step, at = 0;
    inline void next() {
        const int64_t row = at >> (kFraction + kEighths), column = (at >> kFraction & 7) * kEighthBytes;
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; ++i) {
            const char *place = static_cast<const char *>(rows[i].first) + row * rows[i].row_bytes + column;
            i == 0 ? __builtin_prefetch(place, 1) : __builtin_prefetch(place, 0);
        }
        at += step;
    }
};
template <class... More>
NF_INLINE FetchRows<1 + sizeof...(More)> fetch_rows(int64_t depth, RowsInMemory written, More... more) {
    typedef FetchRows<1 + sizeof...(More)> Fetch;
    return {{written, more...}, (int64_t(kTileRows) << (Fetch::kFraction + Fetch::kEighths)) / depth};
}

// c (ROWS x VECTORS * lanes, row stride c_row) = or += a @ b, where row k of b begins at b + k * b_row. E is the type
// of operands.
template <class E, int ROWS, int VECTORS, class Rows, class Fetch = FetchNothing>
NF_INLINE void multiply_rows(int64_t depth, Rows a, const E *b, int64_t b_row, Acc<E> *c, int64_t c_row, Store mode,
                             Fetch fetch = {}) {
    typedef Acc<E> A;
    Vec<A> sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j)
            sum[i][j] = Vec<A>{};
    for (int64_t k = 0; k < depth; ++k) {
        Vec<E> column[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j)
            column[j] = load(b + j * kLanes<A>);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const Vec<E> element = broadcast(a[i]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j)
                sum[i][j] = multiply_add<E>(element, column[j], sum[i][j]);
        }
        a.next();
        b += b_row;
        fetch.next();
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) {
            A *p = c + i * c_row + j * kLanes<A>;
            store(p, mode == Store::add ? load(p) + sum[i][j] : sum[i][j]);
        }
}

template <class E, class Layout, int ROWS, int VECTORS>
static void multiply_tile(int64_t depth, const E *a, const E *b, int64_t b_row, Acc<E> *c, int64_t c_row, Store mode) {
    multiply_rows<E, ROWS, VECTORS>(depth, RowsOfLayout<E, Layout>{a}, b, b_row, c, c_row, mode);
}

#if defined(__AMX_BF16__)
// The same by matrix registers, ROWS x COLUMNS of them, all of which are written; a chain is continued where they add.
template <class Layout, int ROWS, int COLUMNS>
static void multiply_tile_of_matrices(int64_t depth, const bf16_pair *a, const bf16_pair *b, int64_t b_row, float *c,
                                      int64_t c_row, Store mode) {
    static_assert(Layout::step == 1, "matrix registers are filled with rows");
    multiply_matrices<Layout::row, ROWS, COLUMNS>(depth, a, b, b_row, c, c_row, mode == Store::add);
}
#endif

template <class E>
using TileFunction = void (*)(int64_t depth, const E *a, const E *b, int64_t b_row, Acc<E> *c, int64_t c_row,
                              Store mode);

// The tile function for 1 <= rows <= kTileRows, computing VECTORS registers of columns.
template <class E, class Layout, int VECTORS> NF_INLINE TileFunction<E> tile_of_rows(int64_t rows) {
#define NF_TILE(r) multiply_tile<E, Layout, (r <= kTileRows ? r : 1), VECTORS>
    static constexpr TileFunction<E> table[] = {
        NF_TILE(1), NF_TILE(2), NF_TILE(3),  NF_TILE(4),  NF_TILE(5),  NF_TILE(6),  NF_TILE(7),
        NF_TILE(8), NF_TILE(9), NF_TILE(10), NF_TILE(11), NF_TILE(12), NF_TILE(13), NF_TILE(14),
    };
#undef NF_TILE
    return table[rows - 1];
}

// As above, for 1 <= rows <= kStripRows; one register of columns where that is enough. Matrix registers write whole
// ones of rows, too.
template <class E, class Layout> NF_INLINE TileFunction<E> tile_for(int64_t rows, int64_t columns) {
#if defined(__AMX_BF16__)
    if constexpr (kByMatrices<E>) {
        if (rows <= 16)
            return columns <= 16 ? multiply_tile_of_matrices<Layout, 1, 1> : multiply_tile_of_matrices<Layout, 1, 2>;
        return columns <= 16 ? multiply_tile_of_matrices<Layout, 2, 1> : multiply_tile_of_matrices<Layout, 2, 2>;
    } else
#endif
        return columns <= kLanes<E> ? tile_of_rows<E, Layout, 1>(rows) : tile_of_rows<E, Layout, kTileVectors>(rows);
}

// ---- packing
// -----------------------------------------------------------------------------------------------------------

// A square of lanes x lanes elements, transposed in registers: log2(lanes) rounds of interleaving row i with row i +
// half.
template <class A> struct Interleave;
#if defined(__clang__)
#define NF_SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define NF_SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, IntVec<type>{__VA_ARGS__})
#endif
#if defined(__AVX512F__)
template <> struct Interleave<float> {
    static inline Vec<float> low(Vec<float> a, Vec<float> b) {
        return NF_SHUFFLE(float, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    }
    static inline Vec<float> high(Vec<float> a, Vec<float> b) {
        return NF_SHUFFLE(float, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
};
template <> struct Interleave<double> {
    static inline Vec<double> low(Vec<double> a, Vec<double> b) {
        return NF_SHUFFLE(double, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    }
    static inline Vec<double> high(Vec<double> a, Vec<double> b) {
        return NF_SHUFFLE(double, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
};
#elif defined(__AVX2__)
template <> struct Interleave<float> {
    static inline Vec<float> low(Vec<float> a, Vec<float> b) {
        return NF_SHUFFLE(float, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    }
    static inline Vec<float> high(Vec<float> a, Vec<float> b) {
        return NF_SHUFFLE(float, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
};
template <> struct Interleave<double> {
    static inline Vec<double> low(Vec<double> a, Vec<double> b) { return NF_SHUFFLE(double, a, b, 0, 4, 1, 5); }
    static inline Vec<double> high(Vec<double> a, Vec<double> b) { return NF_SHUFFLE(double, a, b, 2, 6, 3, 7); }
};
#else
template <> struct Interleave<float> {
    static inline Vec<float> low(Vec<float> a, Vec<float> b) { return NF_SHUFFLE(float, a, b, 0, 4, 1, 5); }
    static inline Vec<float> high(Vec<float> a, Vec<float> b) { return NF_SHUFFLE(float, a, b, 2, 6, 3, 7); }
};
template <> struct Interleave<double> {
    static inline Vec<double> low(Vec<double> a, Vec<double> b) { return NF_SHUFFLE(double, a, b, 0, 2); }
    static inline Vec<double> high(Vec<double> a, Vec<double> b) { return NF_SHUFFLE(double, a, b, 1, 3); }
};
#endif
// pick<HALF, H>: of two registers that hold sums of 2 * HALF lanes each, the lanes of the first half of each sum (H =
// 0), or of the second (H = HALF).
template <class A> struct Halves;
#if defined(__AVX512F__)
template <> struct Halves<float> {
    template <int HALF, int H> static inline Vec<float> pick(Vec<float> a, Vec<float> b) {
        if constexpr (HALF == 8)
            return NF_SHUFFLE(float, a, b, H + 0, H + 1, H + 2, H + 3, H + 4, H + 5, H + 6, H + 7, H + 16, H + 17,
                              H + 18, H + 19, H + 20, H + 21, H + 22, H + 23);
        else if constexpr (HALF == 4)
            return NF_SHUFFLE(float, a, b, H + 0, H + 1, H + 2, H + 3, H + 8, H + 9, H + 10, H + 11, H + 16, H + 17,
                              H + 18, H + 19, H + 24, H + 25, H + 26, H + 27);
        else if constexpr (HALF == 2)
            return NF_SHUFFLE(float, a, b, H + 0, H + 1, H + 16, H + 17, H + 4, H + 5, H + 20, H + 21, H + 8, H + 9,
                              H + 24, H + 25, H + 12, H + 13, H + 28, H + 29);
        else
            return NF_SHUFFLE(float, a, b, H + 0, H + 2, H + 16, H + 18, H + 4, H + 6, H + 20, H + 22, H + 8, H + 10,
                              H + 24, H + 26, H + 12, H + 14, H + 28, H + 30);
    }
};
template <> struct Halves<double> {
    template <int HALF, int H> static inline Vec<double> pick(Vec<double> a, Vec<double> b) {
        if constexpr (HALF == 4)
            return NF_SHUFFLE(double, a, b, H + 0, H + 1, H + 2, H + 3, H + 8, H + 9, H + 10, H + 11);
        else if constexpr (HALF == 2)
            return NF_SHUFFLE(double, a, b, H + 0, H + 1, H + 4, H + 5, H + 8, H + 9, H + 12, H + 13);
        else
            return NF_SHUFFLE(double, a, b, H + 0, H + 8, H + 2, H + 10, H + 4, H + 12, H + 6, H + 14);
    }
};
#elif defined(__AVX2__)
template <> struct Halves<float> {
    template <int HALF, int H> static inline Vec<float> pick(Vec<float> a, Vec<float> b) {
        if constexpr (HALF == 4)
            return NF_SHUFFLE(float, a, b, H + 0, H + 1, H + 2, H + 3, H + 8, H + 9, H + 10, H + 11);
        else if constexpr (HALF == 2)
            return NF_SHUFFLE(float, a, b, H + 0, H + 1, H + 8, H + 9, H + 4, H + 5, H + 12, H + 13);
        else
            return NF_SHUFFLE(float, a, b, H + 0, H + 2, H + 8, H + 10, H + 4, H + 6, H + 12, H + 14);
    }
};
template <> struct Halves<double> {
    template <int HALF, int H> static inline Vec<double> pick(Vec<double> a, Vec<double> b) {
        if constexpr (HALF == 2)
            return NF_SHUFFLE(double, a, b, H + 0, H + 1, H + 4, H + 5);
        else
            return NF_SHUFFLE(double, a, b, H + 0, H + 4, H + 2, H + 6);
    }
};
#else
template <> struct Halves<float> {
    template <int HALF, int H> static inline Vec<float> pick(Vec<float> a, Vec<float> b) {
        if constexpr (HALF == 2)
            return NF_SHUFFLE(float, a, b, H + 0, H + 1, H + 4, H + 5);
        else
            return NF_SHUFFLE(float, a, b, H + 0, H + 2, H + 4, H + 6);
    }
};
template <> struct Halves<double> {
    template <int HALF, int H> static inline Vec<double> pick(Vec<double> a, Vec<double> b) {
        return NF_SHUFFLE(double, a, b, H + 0, H + 2);
    }
};
#endif
#undef NF_SHUFFLE

template <class A> NF_INLINE void transpose_square(Vec<A> (&row)[kLanes<A>]) {
    constexpr int half = kLanes<A> / 2;
#pragma GCC unroll 4
    for (int round = 1; round < kLanes<A>; round *= 2) {
        Vec<A> next[kLanes<A>];
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) {
            next[2 * i] = Interleave<A>::low(row[i], row[i + half]);
            next[2 * i + 1] = Interleave<A>::high(row[i], row[i + half]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<A>; ++i)
            row[i] = next[i];
    }
}

// Operands of E from elements of T: those of one row along the depth, `elements` <= lanes * kElements<E> of them, zeros
// behind; and, for n rows or columns that lie side by side, that of one step of the depth, whose elements begin at p
// and (a pair's second one, zero unless `whole`) at p + next.
template <class E, class T> NF_INLINE Vec<E> load_along(const T *p, int elements) {
    if constexpr (kElements<E> == 2)
        return load_pairs(p, elements);
    else
        return load_some(p, elements);
}
template <class E, class T>
NF_INLINE Vec<E> load_across(const T *p, [[maybe_unused]] int64_t next, int n, [[maybe_unused]] bool whole) {
    if constexpr (kElements<E> == 2) { // bfloat16 is the upper half of the float that load gives
        const BitsVec first = (BitsVec)load_some(p, n), second = whole ? (BitsVec)load_some(p + next, n) : BitsVec{};
        return (Vec<E>)(first >> 16 | second);
    } else {
        return load_some(p, n);
    }
}
template <class E> NF_INLINE int64_t steps_of(int64_t depth) { return ceil_div(depth, kElements<E>); }

// Lane i of the result is the sum (the largest) of v[i]'s lanes, taken by halves as reduce_add does: two registers at a
// time become one that holds half as many sums of each, 2 (lanes - 1) shuffles in all, where transposing takes lanes *
// log2(lanes).
struct Sum {
    template <class V> static inline V of(V a, V b) { return a + b; }
};
struct Largest {
    template <class V> static inline V of(V a, V b) { return max(a, b); }
};
template <class Op, class A, int COUNT> NF_INLINE Vec<A> fold_halves(const Vec<A> (&v)[COUNT]) {
    if constexpr (COUNT == 1) {
        return v[0];
    } else {
        constexpr int kHalf = COUNT / 2;
        Vec<A> next[kHalf];
#pragma GCC unroll 8
        for (int i = 0; i < kHalf; ++i)
            next[i] = Op::of(Halves<A>::template pick<kHalf, 0>(v[2 * i], v[2 * i + 1]),
                             Halves<A>::template pick<kHalf, kHalf>(v[2 * i], v[2 * i + 1]));
        return fold_halves<Op, A, kHalf>(next);
    }
}
template <class Op, class A> NF_INLINE Vec<A> fold_lanes(const Vec<A> (&v)[kLanes<A>]) {
    constexpr int Q = 16 / int(sizeof(A)), G = kLanes<A> / Q; // lanes of 128 bits, within which the last ones are taken
    Vec<A> in_order[kLanes<A>];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i)
        in_order[i] = v[Q * (i % G) + i / G];
    return fold_halves<Op, A, kLanes<A>>(in_order);
}
template <class A> NF_INLINE Vec<A> sums_of_lanes(const Vec<A> (&v)[kLanes<A>]) { return fold_lanes<Sum, A>(v); }

// to[step * to_row + j] = from[j * from_row + k], the elements k of the step, for j < count, zero for count <= j <
// width; width a multiple of the lanes.
template <class E, class T>
static void pack_transposed(int64_t depth, int64_t count, int64_t width, const T *from, int64_t from_row, E *to,
                            int64_t to_row) {
    constexpr int W = kLanes<E>, kDepthOfSquare = W * kElements<E>;
    for (int64_t j = 0; j < width; j += W) {
        const int64_t rows = smaller(W, larger(0, count - j));
        for (int64_t k = 0; k < depth; k += kDepthOfSquare) {
            const int elements = int(smaller(kDepthOfSquare, depth - k)), steps = int(steps_of<E>(elements));
            Vec<E> square[W];
            if (rows == W && elements == kDepthOfSquare) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i)
                    square[i] = load_along<E>(from + (j + i) * from_row + k, kDepthOfSquare);
            } else {
                for (int i = 0; i < W; ++i)
                    square[i] = i < rows ? load_along<E>(from + (j + i) * from_row + k, elements) : Vec<E>{};
            }
            transpose_square<Acc<E>>(square);
            E *out = to + k / kElements<E> * to_row + j;
            if (steps == W) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i)
                    store(out + i * to_row, square[i]);
            } else {
                for (int i = 0; i < steps; ++i)
                    store(out + i * to_row, square[i]);
            }
        }
    }
}

// to[step * to_row + j] = from[k * from_row + j], the elements k of the step, for j < count, zero for count <= j <
// width; width a multiple of the lanes.
template <class E, class T>
static void pack_straight(int64_t depth, int64_t count, int64_t width, const T *from, int64_t from_row, E *to,
                          int64_t to_row) {
    constexpr int W = kLanes<E>;
    for (int64_t k = 0; k < depth; k += kElements<E>, to += to_row)
        for (int64_t j = 0; j < width; j += W)
            store(to + j, load_across<E>(from + k * from_row + j, from_row, int(smaller(W, larger(0, count - j))),
                                         k + 1 < depth));
}

// A block of B as panels of kTileColumns columns, each depth x kTileColumns and contiguous. One of row and col is 1.
template <class E, class T>
NF_INLINE void pack_panel(int64_t depth, int64_t columns, const T *b, int64_t row, int64_t col, E *panel) {
    constexpr int NR = kTileColumns<E>;
    if (col == 1)
        pack_straight<E, T>(depth, columns, NR, b, row, panel, NR);
    else
        pack_transposed<E, T>(depth, columns, NR, b, col, panel, NR);
}

// Rows of A with depth outermost (InPanels): panel[step * kTileRows + i] = factor * a[i * row + k * col], zero for rows
// <= i < kTileRows. One of row and col is 1; pairs take no factor.
//
// Squares are transposed in registers. A step is stored as whole registers, for partial stores are slow on some
// processors (AVX's masked store on AMD's Zen takes some 20 cycles): what a step writes beyond its own is written again
// by the next one, and after the last up to kLanes operands behind the panel are overwritten.
template <class E, class T>
static void pack_rows_in_panel(int64_t depth, int64_t rows, const T *a, int64_t row, int64_t col,
                               [[maybe_unused]] Acc<E> factor, E *panel) {
    constexpr int W = kLanes<E>, kParts = (kTileRows + W - 1) / W;
    auto scaled = [&](Vec<E> v) __attribute__((always_inline)) {
        if constexpr (kElements<E> == 2)
            return v;
        else
            return v * factor;
    };
    if (row == 1) {
        int lanes[kParts];
        for (int part = 0; part < kParts; ++part)
            lanes[part] = int(smaller(W, larger(0, rows - part * W)));
        for (int64_t k = 0; k < depth; k += kElements<E>, panel += kTileRows)
#pragma GCC unroll 4
            for (int part = 0; part < kParts; ++part)
                store(panel + part * W,
                      scaled(load_across<E>(a + k * col + part * W, col, lanes[part], k + 1 < depth)));
        return;
    }
    for (int64_t k = 0; k < depth; k += W * kElements<E>, panel += W * kTileRows) {
        const int elements = int(smaller(W * kElements<E>, depth - k)), steps = int(steps_of<E>(elements));
        Vec<E> square[kParts][W];
        for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
                square[part][i] =
                    part * W + i < rows ? scaled(load_along<E>(a + (part * W + i) * row + k, elements)) : Vec<E>{};
            transpose_square<Acc<E>>(square[part]);
        }
#pragma GCC unroll 16
        for (int step = 0; step < W; ++step)
            if (step < steps)
#pragma GCC unroll 4
                for (int part = 0; part < kParts; ++part)
                    store(panel + step * kTileRows + part * W, square[part][step]);
    }
}

// Rows of A as rows (InRows<ROW_STRIDE>), zero behind the depth up to a whole register.
template <class E, class T, int ROW_STRIDE>
static void pack_rows(int64_t depth, int64_t rows, const T *a, int64_t row, E *packed) {
    constexpr int kRegister = kLanes<E> * kElements<E>;
    for (int64_t r = 0; r < rows; ++r) {
        const T *from = a + r * row;
        E *to = packed + r * ROW_STRIDE;
        int64_t k = 0;
        for (; k + kRegister <= depth; k += kRegister, to += kLanes<E>)
            store(to, load_along<E>(from + k, kRegister));
        if (k < depth)
            store(to, load_along<E>(from + k, int(depth - k)));
    }
}
// Rows of A from its transpose, as rows (InRows<ROW_STRIDE>): packed[i * ROW_STRIDE + step] = the elements k of the
// step of a[i + k * col], zero behind the depth up to a whole register.
template <class E, class T, int ROW_STRIDE>
static void pack_columns_in_rows(int64_t depth, int64_t rows, const T *a, int64_t col, E *packed) {
    constexpr int W = kLanes<E>;
    for (int64_t k = 0; k < depth; k += W * kElements<E>)
        for (int64_t i = 0; i < rows; i += W) {
            Vec<E> square[W];
            for (int step = 0; step < W; ++step) {
                const int64_t first = k + step * kElements<E>;
                square[step] = first < depth ? load_across<E>(a + i + first * col, col, int(smaller(W, rows - i)),
                                                              first + 1 < depth)
                                             : Vec<E>{};
            }
            transpose_square<Acc<E>>(square);
            for (int64_t r = 0; r < smaller(W, rows - i); ++r)
                store(packed + (i + r) * ROW_STRIDE + k / kElements<E>, square[r]);
        }
}

} // namespace nf::NUMFORMER_LEVEL
