// A matrix B that was packed once, for many products (nf.PackedMatrix): the panels of Goto and van de Geijn (2008, see
// matmul.cpp, which blocks the products of many rows), kTileColumns columns each, with the whole depth in one piece of
// memory, so that a product of many rows needs no packing and one of few rows reads long streams.
//
// Elements are stored as float, double or f16, as pairs of bfloat16 that follow each other along the depth (what
// vdpbf16ps multiplies; the other levels take a pair apart by a shift and a mask), or as int8_t with one factor a
// column. A stored unit is a register's lane: one element, or one pair.
#pragma once
#include "kernels/tile.hpp"
#include "runtime/caches.hpp"

namespace nf::NUMFORMER_LEVEL {

struct StoredPair {
    uint32_t bits; // the first element in the lower half
};

template <class S> constexpr int kUnitDepth = 1;
template <> constexpr int kUnitDepth<StoredPair> = 2;
template <class S> constexpr int64_t kPanelColumns = sizeof(S) == 8 ? kTileColumns<double> : kTileColumns<float>;

// Units from one panel to the next; some more than its own, for panels a power of two apart share cache sets.
template <class S> NF_INLINE int64_t stored_panel(int64_t depth) {
    return (ceil_div(depth, kUnitDepth<S>) + 2) * kPanelColumns<S>;
}

// A register of lanes from units of S: for operands E that hold as many elements as a unit does, they; else element
// `part` of each unit.
template <class E, class S> NF_INLINE Vec<E> load_units(const S *units, int part) {
    if constexpr (sizeof(S) == 1) {
        return load_int8(units);
    } else if constexpr (std::is_same<S, StoredPair>::value && kElements<E> == 2) {
        return load(reinterpret_cast<const E *>(units));
    } else if constexpr (std::is_same<S, StoredPair>::value) {
        const BitsVec pairs = *reinterpret_cast<const VecOf<float>::loose_bits *>(units);
        return (Vec<float>)(part == 0 ? pairs << 16 : pairs & 0xffff0000u);
    } else {
        return load(units);
    }
}
// Operands E along the depth that a unit of S gives; is the unit one itself?
template <class E, class S> constexpr int kParts = kUnitDepth<S> / kElements<E>;
template <class E, class S> constexpr bool kIsOperand = sizeof(S) == sizeof(E) && kParts<E, S> == 1;

// ---- to and from panels, once a matrix

NF_INLINE void store_unit(float *unit, int, float x) { *unit = x; }
NF_INLINE void store_unit(double *unit, int, double x) { *unit = x; }
NF_INLINE void store_unit(f16 *unit, int, float x) { store_one(unit, x); }
NF_INLINE void store_unit(int8_t *unit, int, float x) { *unit = int8_t(x); }
NF_INLINE void store_unit(StoredPair *unit, int part, float x) {
    bf16 element;
    store_one(&element, x);
    unit->bits |= uint32_t(element.bits) << 16 * part;
}
NF_INLINE float load_unit(const float *unit, int) { return *unit; }
NF_INLINE double load_unit(const double *unit, int) { return *unit; }
NF_INLINE float load_unit(const f16 *unit, int) { return load_one(unit); }
NF_INLINE float load_unit(const int8_t *unit, int) { return *unit; }
NF_INLINE float load_unit(const StoredPair *unit, int part) {
    const bf16 element{uint16_t(unit->bits >> 16 * part)};
    return load_one(&element);
}

// T is the type of the array, S that of a unit. int8_t: round(b / scale), scale = max |b| / 127 of the column, so
// that a column with an infinity or a NaN gives NaN (0 * infinity).
template <class T, class S> void pack_stored(const PackMatrixArgs &args, const T *b) {
    typedef Acc<T> A;
    constexpr int64_t NR = kPanelColumns<S>;
    const int64_t panel = stored_panel<S>(args.k);
    parallel_ranges(ceil_div(args.n, NR), 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            S *to = static_cast<S *>(args.panels) + p * panel;
            memset(static_cast<void *>(to), 0, size_t(panel) * sizeof(S));
            const int64_t columns = smaller(NR, args.n - p * NR);
            const T *from = b + p * NR * args.b_col;
            A factor[NR] = {};
            if constexpr (sizeof(S) == 1) {
                for (int64_t k = 0; k < args.k; ++k)
                    for (int64_t j = 0; j < columns; ++j) { // the greatest so far, a NaN once there was one
                        const A x = __builtin_fabsf(load_one(from + k * args.b_row + j * args.b_col));
                        factor[j] = x <= factor[j] || factor[j] != factor[j] ? factor[j] : x;
                    }
                for (int64_t j = 0; j < columns; ++j) {
                    args.column_scale[p * NR + j] = factor[j] / 127;
                    factor[j] = factor[j] > 0 ? 127 / factor[j] : 0; // 0 for an infinity and a NaN too
                }
            }
            for (int64_t k = 0; k < args.k; ++k)
                for (int64_t j = 0; j < columns; ++j) {
                    const A x = load_one(from + k * args.b_row + j * args.b_col);
                    S *unit = to + k / kUnitDepth<S> * NR + j;
                    if constexpr (sizeof(S) == 1)
                        store_unit(unit, 0, factor[j] > 0 ? __builtin_rintf(x * factor[j]) : 0);
                    else
                        store_unit(unit, int(k % kUnitDepth<S>), x);
                }
        }
    });
}

// b (rows of args.b_row, unit stride) = the matrix, as O.
template <class O, class S> void unpack_stored(const PackMatrixArgs &args) {
    constexpr int64_t NR = kPanelColumns<S>;
    const int64_t panel = stored_panel<S>(args.k);
    O *b = static_cast<O *>(const_cast<void *>(args.b));
    for (int64_t k = 0; k < args.k; ++k)
        for (int64_t j = 0; j < args.n; ++j) {
            const S *unit = static_cast<const S *>(args.panels) + j / NR * panel + k / kUnitDepth<S> * NR + j % NR;
            O x = load_unit(unit, int(k % kUnitDepth<S>));
            if constexpr (sizeof(S) == 1)
                x *= args.column_scale[j];
            b[k * args.b_row + j] = x;
        }
}

// ---- products

// packed (as tile.hpp wants B) = steps of the depth from k0 on, of `panels` panels.
template <class E, class S>
static void unpack_panels(const S *from, int64_t from_panel, int64_t k0, int64_t depth, int64_t panels, int64_t panel,
                          E *packed) {
    constexpr int64_t NR = kPanelColumns<S>;
    for (int64_t p = 0; p < panels; ++p) {
        const S *units = from + p * from_panel + k0 / kUnitDepth<S> * NR;
        E *to = packed + p * panel;
        for (int64_t k = 0; k < depth; k += kUnitDepth<S>, units += NR)
#pragma GCC unroll 2
            for (int part = 0; part < kParts<E, S>; ++part)
                if (part == 0 || k + part < depth) {
#pragma GCC unroll 4
                    for (int v = 0; v < kTileVectors; ++v)
                        store(to + v * kLanes<E>, load_units<E, S>(units + v * kLanes<E>, part));
                    to += NR;
                }
    }
}

// Panels that are read side by side are as many streams of memory, in each of which the hardware runs ahead. One by
// itself is a single stream, where it does not do so enough: it is read in pieces that stay in the first-level cache
// while all strips of rows meet them, and the last strip asks for the next piece.
constexpr int64_t kPieceBytes = 8 << 10;
// Of panels side by side this much is asked for beforehand, into the second-level cache: 1.06 to 1.08 times what the
// hardware reads by itself (Zen 4; 512 and 2048 bytes: less). Not where widening, not reading, takes the time.
template <class S> constexpr bool kFetchesAhead = sizeof(S) > 1;
constexpr int64_t kAheadBytes = 1 << 10;
template <class S>
constexpr int64_t kPieceDepth = kPieceBytes / (kPanelColumns<S> * int64_t(sizeof(S))) * kUnitDepth<S>;

// From one step of a strip of A to the next: a single row is kept as it is.
constexpr int step_of_strip(int64_t rows) { return rows == 1 ? 1 : kTileRows; }

// sums (ROWS x PANELS * kPanelColumns) = or += a (InPanels) times as many panels, each sum one chain over the depth.
template <class E, class S, int ROWS, int PANELS>
static void multiply_panels(int64_t depth, const E *a, const S *units, int64_t panel, Acc<E> *sums, int64_t sums_row,
                            bool add_to_sums, bool fetch_next) {
    typedef Acc<E> A;
    constexpr int kVectors = PANELS * kTileVectors;
    constexpr int64_t NR = kPanelColumns<S>, kStepBytes = NR * int64_t(sizeof(S));
    constexpr int64_t kLineSteps = kStepBytes < runtime::kLineBytes ? runtime::kLineBytes / kStepBytes : 1;
    Vec<A> sum[ROWS][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
            sum[i][v] = add_to_sums ? load(sums + i * sums_row + v * kLanes<A>) : Vec<A>{};
    auto column = [&](int v, int part) __attribute__((always_inline)) {
        return load_units<E, S>(units + v / kTileVectors * panel + v % kTileVectors * kLanes<E>, part);
    };
    // What there is less of stays in registers, elements of a or columns.
    auto add = [&](int part) __attribute__((always_inline)) {
        if constexpr (ROWS <= kVectors) {
            Vec<E> element[ROWS];
#pragma GCC unroll 16
            for (int i = 0; i < ROWS; ++i)
                element[i] = broadcast(a[i]);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                const Vec<E> x = column(v, part);
#pragma GCC unroll 16
                for (int i = 0; i < ROWS; ++i)
                    sum[i][v] = multiply_add<E>(element[i], x, sum[i][v]);
            }
        } else {
            Vec<E> x[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                x[v] = column(v, part);
#pragma GCC unroll 16
            for (int i = 0; i < ROWS; ++i) {
                const Vec<E> element = broadcast(a[i]);
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v)
                    sum[i][v] = multiply_add<E>(element, x[v], sum[i][v]);
            }
        }
        a += step_of_strip(ROWS);
    };
    int64_t k = 0;
    for (int64_t step = 0; k + kUnitDepth<S> <= depth; k += kUnitDepth<S>, ++step, units += NR) {
        if (PANELS == 1 && fetch_next && step % kLineSteps == 0)
#pragma GCC unroll 4
            for (int64_t byte = 0; byte < kStepBytes; byte += runtime::kLineBytes)
                __builtin_prefetch(reinterpret_cast<const char *>(units) + kPieceBytes + byte);
        if (PANELS > 1 && kFetchesAhead<S> && fetch_next && step % kLineSteps == 0)
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
                for (int64_t byte = 0; byte < kStepBytes; byte += runtime::kLineBytes)
                    __builtin_prefetch(reinterpret_cast<const char *>(units + p * panel) + kAheadBytes + byte, 0, 2);
#pragma GCC unroll 2
        for (int part = 0; part < kParts<E, S>; ++part)
            add(part);
    }
    if (k < depth)
        add(0);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
            store(sums + i * sums_row + v * kLanes<A>, sum[i][v]);
}

// Panels at once: as many as there are registers for their sums, for one step's elements of a or columns, whichever
// are less, and one of the others.
constexpr int kMostPanels = 4;
constexpr int panels_at_once(int rows) {
    constexpr int kRegisters = kManyRegisters ? 32 : 16;
    for (int panels = kMostPanels; panels > 1; --panels) {
        const int vectors = panels * kTileVectors;
        if (rows * vectors + (rows < vectors ? rows : vectors) + 1 <= kRegisters)
            return panels;
    }
    return 1;
}

template <class E, class S>
using PanelsFunction = void (*)(int64_t depth, const E *a, const S *units, int64_t panel, Acc<E> *sums,
                                int64_t sums_row, bool add_to_sums, bool fetch_next);
// The function for 1 <= rows <= kTileRows and panels_at_once(rows) panels, or for one panel.
template <class E, class S> NF_INLINE PanelsFunction<E, S> panels_function(int64_t rows, bool single) {
#define NF_ROWS(r) multiply_panels<E, S, (r <= kTileRows ? r : 1), panels_at_once(r <= kTileRows ? r : 1)>
#define NF_SINGLE(r) multiply_panels<E, S, (r <= kTileRows ? r : 1), 1>
    static constexpr PanelsFunction<E, S> several[] = {
        NF_ROWS(1), NF_ROWS(2), NF_ROWS(3),  NF_ROWS(4),  NF_ROWS(5),  NF_ROWS(6),  NF_ROWS(7),
        NF_ROWS(8), NF_ROWS(9), NF_ROWS(10), NF_ROWS(11), NF_ROWS(12), NF_ROWS(13), NF_ROWS(14),
    };
    static constexpr PanelsFunction<E, S> one[] = {
        NF_SINGLE(1), NF_SINGLE(2), NF_SINGLE(3),  NF_SINGLE(4),  NF_SINGLE(5),  NF_SINGLE(6),  NF_SINGLE(7),
        NF_SINGLE(8), NF_SINGLE(9), NF_SINGLE(10), NF_SINGLE(11), NF_SINGLE(12), NF_SINGLE(13), NF_SINGLE(14),
    };
#undef NF_ROWS
#undef NF_SINGLE
    return single ? one[rows - 1] : several[rows - 1];
}

} // namespace nf::NUMFORMER_LEVEL
