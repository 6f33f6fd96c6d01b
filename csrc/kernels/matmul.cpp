// Matrix multiply: out = activation(scale * a @ b + bias) + residual.
//
// Blocking after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008):
//   depth in blocks of kDepth: a tile's rows of A stay near while they meet a chunk of columns of B, packed into panels
//   that fill 3/4 of L2 and are used by all rows of a block (at most kBlockRows). 6 rows of 512 floats, 12 KiB, stay in
//   L1; 14 of 1024, 56 KiB, in L2, for with 32 registers a tile reads a line of A and B in five cycles, and half as
//   many blocks read and write the sums half as often.
// The output is divided into parts, columns for each thread or, where rows are more, rows: parts share nothing, so
// there is one fork and one join and no barrier. Each packs an element of A once a block of depth, and one of B once a
// block of rows. Transposes cost nothing but the order in which packing reads: rows of A are copied as rows (InRows)
// or, from a transposed A, with depth outermost (InPanels).
//
// Up to kFewRows rows (decoding) nothing of B is used twice, so it is read in place. A B that was packed beforehand
// (panels.hpp) serves both.
//
// Order of sums: each block of kDepth steps is one chain of multiply-adds, blocks are added in order. kDepth is a
// constant of the level, so bits do not depend on threads or caches.
//
// Types: T is that of a and b, E that of the operands they are packed into (tile.hpp), A = Acc<E> that of sums.
// bfloat16 is packed as pairs where the level has vdpbf16ps, else it is widened to float, as float16 is everywhere.
#include "kernels/matmul_output.hpp"
#include "kernels/matmul_short.hpp"
#include "kernels/panels.hpp"
#include "runtime/caches.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kDepthElements = 1024;
#else
constexpr int64_t kDepthElements = 512;
#endif
// In steps: operands along the depth.
template <class E> constexpr int kDepth = kDepthElements / kElements<E>;
template <class E> constexpr int kRowStride = kDepth<E> + 16; // rows a multiple of 4 KiB apart would share cache sets
// Rows of A that are packed at once: B's chunks are packed again for each block, 1/1344 of the multiply-adds; and
// 1344 x 1040 floats are 5.3 MiB.
constexpr int64_t kBlockRows = 1344;
constexpr int64_t kPartColumns = 2048; // of one part: threads that are held up leave whole parts to others
constexpr int64_t kFewRows = 16;
// Packing of B: rows that are copied in turn, and how far ahead they are fetched.
constexpr int64_t kPackRows = 4, kPrefetchRows = 8;
// Below this many multiply-adds a fork and join costs more than it saves (about 5 microseconds).
constexpr int64_t kParallelWork = 400000;

// From one packed panel of B to the next: a little more than its size, for panels a power of two apart share cache
// sets.
template <class E> constexpr int64_t panel_stride(int64_t steps) { return steps * kTileColumns<E> + 2 * kLanes<E>; }

// Columns of B whose panels fill 3/4 of the second-level cache, in whole panels.
template <class E> int64_t chunk_columns() {
    const int64_t panel = panel_stride<E>(kDepth<E>) * int64_t(sizeof(E));
    return larger(1, runtime::second_level_cache() * 3 / 4 / panel) * kTileColumns<E>;
}

// ---- many rows
// ----------------------------------------------------------------------------------------------------------

// Rows [i, i + rows) of A, depth [k0, k0 + depth): one tile's left operand.
template <class E, class T>
void pack_a(const MatmulArgs &args, const T *a, int64_t i, int64_t rows, int64_t k0, int64_t depth, E *packed) {
    a += i * args.a_row + k0 * args.a_col;
    if (args.a_col != 1) {
        if constexpr (kByMatrices<E>)
            return pack_columns_in_rows<E, T, kRowStride<E>>(depth, rows, a, args.a_col, packed);
        else
            return pack_rows_in_panel<E, T>(depth, rows, a, args.a_row, args.a_col, Acc<E>(1), packed);
    }
    pack_rows<E, T, kRowStride<E>>(depth, rows, a, args.a_row, packed);
}

// Rows of A packed at once, and columns of B, where a part of the output has so many: equal blocks.
template <class E> int64_t rows_of_block(int64_t rows) {
    return round_up(ceil_div(rows, ceil_div(rows, kBlockRows)), kStripRows<E>);
}
template <class E> int64_t columns_of_chunk(int64_t columns) {
    constexpr int64_t NR = kTileColumns<E>;
    return ceil_div(ceil_div(columns, NR), ceil_div(columns, chunk_columns<E>())) * NR;
}

// Depth [k0, k0 + depth), columns [j0, j0 + columns) of B: panels of kTileColumns columns, `panel` operands apart.
template <class E, class T>
void pack_b(const MatmulArgs &args, const T *b, int64_t k0, int64_t depth, int64_t j0, int64_t columns, int64_t panel,
            E *packed) {
    constexpr int64_t NR = kTileColumns<E>;
    b += k0 * args.b_row + j0 * args.b_col;
    const int64_t whole = args.b_col == 1 ? columns / NR : 0; // along rows of B: its reading order
    constexpr int kLineElements = 64 / int(sizeof(T));
    for (int64_t k = 0; k < depth; k += kPackRows) {
        const int64_t rows = smaller(kPackRows, depth - k);
        for (int64_t p = 0; p < whole; ++p)
            for (int64_t r = 0; r < rows; r += kElements<E>) {
                const T *from = b + (k + r) * args.b_row + p * NR;
                E *to = packed + p * panel + (k + r) / kElements<E> * NR;
                // A row of the chunk is too short for the hardware to run ahead in it.
                for (int ahead = 0; ahead < kElements<E>; ++ahead)
                    for (int line = 0; line < NR; line += kLineElements)
                        __builtin_prefetch(from + (kPrefetchRows + ahead) * args.b_row + line);
                for (int v = 0; v < kTileVectors; ++v)
                    store(to + v * kLanes<E>,
                          load_across<E>(from + v * kLanes<E>, args.b_row, kLanes<E>, k + r + 1 < depth));
            }
    }
    for (int64_t p = whole; p * NR < columns; ++p)
        pack_panel<E, T>(depth, smaller(NR, columns - p * NR), b + p * NR * args.b_col, args.b_row, args.b_col,
                         packed + p * panel);
}

// Rows [i0, i0 + rows) x columns [j0, j0 + columns) of the output, of which A and B were packed for depth [k0, k0 +
// depth), B in panels that are `panel` operands apart. `partial` holds the sums of the blocks of depth before, or is
// null.
template <class E, class T, class Layout>
void multiply_block(const Plan<E, T> &plan, const E *packed_a, const E *packed_b, int64_t panel, Acc<E> *partial,
                    int64_t partial_row, int64_t k0, int64_t depth, int64_t i0, int64_t rows, int64_t j0,
                    int64_t columns) {
    typedef Acc<E> A;
    constexpr int64_t NR = kTileColumns<E>;
    const MatmulArgs &args = plan.args;
    const int64_t steps = steps_of<E>(depth);
    const bool first = k0 == 0, last = k0 + depth == args.k;
    const bool add = !first || (plan.direct && args.accumulate); // to what `to` below holds
    constexpr int64_t kRows = kStripRows<E>;
    alignas(kVectorBytes) A tile[kRows * NR];
    for (int64_t i = 0; i < rows; i += kRows) {
        const int64_t tile_rows = smaller(kRows, rows - i);
        const E *a = packed_a + i * kRowStride<E>;
        for (int64_t j = 0; j < columns; j += NR) {
            const int64_t tile_columns = smaller(NR, columns - j);
            const E *b = packed_b + j / NR * panel;
            const auto multiply = tile_for<E, Layout>(tile_rows, tile_columns);
            const bool whole = tile_columns == NR && (!kByMatrices<E> || tile_rows == kRows); // writes that, no more
            A *to = plan.direct ? reinterpret_cast<A *>(plan.product.out) + (i0 + i) * args.out_row + j0 + j
                    : partial   ? partial + i * partial_row + j
                                : nullptr;
            const int64_t to_row = plan.direct ? args.out_row : partial_row;
            if constexpr (kManyRegisters && !kByMatrices<E>)
                if (whole && tile_rows == kRows) {
                    const RowsOfLayout<E, Layout> of_a{a};
                    const RowsInMemory sums{to, to_row * int64_t(sizeof(A))};
                    if (plan.direct || !last) {
                        multiply_rows<E, kTileRows, kTileVectors>(
                            steps, of_a, b, NR, to, to_row, add ? Store::add : Store::write, fetch_rows(steps, sums));
                        continue;
                    }
                    const RowsInMemory out = output_from(args, plan.product, i0 + i, j0 + j);
                    const RowsInMemory residual = residual_from(args, plan.product, i0 + i, j0 + j);
                    const RowsInMemory more = residual.first ? residual : sums;
                    if (more.first)
                        multiply_rows<E, kTileRows, kTileVectors>(steps, of_a, b, NR, tile, NR, Store::write,
                                                                  fetch_rows(steps, out, more));
                    else
                        multiply_rows<E, kTileRows, kTileVectors>(steps, of_a, b, NR, tile, NR, Store::write,
                                                                  fetch_rows(steps, out));
                    if (add)
                        put(to, to_row, tile_rows, tile_columns, tile, NR, true);
                    finish<A, T>(args, plan.product, plan.bias, tile, NR, i0 + i, tile_rows, j0 + j, tile_columns);
                    continue;
                }
            if (whole && (plan.direct || !last)) {
                multiply(steps, a, b, NR, to, to_row, add ? Store::add : Store::write);
                continue;
            }
            if (!plan.direct && last)
                fetch_output(args, plan.product, i0 + i, tile_rows, j0 + j, tile_columns);
            if (kByMatrices<E> && add) { // matrix registers continue a chain
                put(to, to_row, tile_rows, tile_columns, tile, NR, false);
                multiply(steps, a, b, NR, tile, NR, Store::add);
            } else {
                multiply(steps, a, b, NR, tile, NR, Store::write);
            }
            const bool add_tile = add && !kByMatrices<E>;
            if (plan.direct || !last) {
                put(tile, NR, tile_rows, tile_columns, to, to_row, add_tile);
            } else {
                if (add_tile)
                    put(to, to_row, tile_rows, tile_columns, tile, NR, true);
                finish<A, T>(args, plan.product, plan.bias, tile, NR, i0 + i, tile_rows, j0 + j, tile_columns);
            }
        }
    }
}

// A chunk of B, depth [k0, k0 + depth) x columns [j0, j0 + columns), as operands: panels, `panel` operands apart. What
// has to be packed or unpacked for that goes to `memory`.
template <class E> struct Chunk {
    const E *operands;
    int64_t panel;
};
template <class E, class T> struct ArrayB {
    static constexpr bool in_place = false;
    const MatmulArgs &args;
    const T *b;
    Chunk<E> chunk(int64_t k0, int64_t depth, int64_t j0, int64_t columns, E *memory) const {
        const int64_t panel = panel_stride<E>(steps_of<E>(depth));
        pack_b<E, T>(args, b, k0, depth, j0, columns, panel, memory);
        return {memory, panel};
    }
};
template <class E, class S> struct StoredB {
    static constexpr bool in_place = kIsOperand<E, S>;
    const MatmulArgs &args;
    const S *units;
    Chunk<E> chunk(int64_t k0, int64_t depth, int64_t j0, int64_t columns, E *memory) const {
        constexpr int64_t NR = kTileColumns<E>;
        const S *from = units + j0 / NR * args.panel;
        if constexpr (in_place) {
            return {reinterpret_cast<const E *>(from + k0 / kUnitDepth<S> * NR), args.panel};
        } else {
            const int64_t panel = panel_stride<E>(steps_of<E>(depth));
            unpack_panels<E, S>(from, args.panel, k0, depth, ceil_div(columns, NR), panel, memory);
            return {memory, panel};
        }
    }
};

// A part of the output: rows [i0, i0 + rows) x columns [j0, j0 + columns).
template <class E, class T, class B>
bool multiply_part(const Plan<E, T> &plan, const B &b, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    typedef Acc<E> A;
    constexpr int64_t NR = kTileColumns<E>;
    const MatmulArgs &args = plan.args;
    const int64_t block_size = rows_of_block<E>(rows);
    const int64_t a_size = block_size * kRowStride<E>;
    const int64_t chunk = columns_of_chunk<E>(columns);
    // Sums of several blocks of depth wait in memory of their own, for the output may be a narrower type or an input.
    const bool needs_partial = !plan.direct && args.k > kDepthElements;
    Scratch<E> memory(a_size +
                      (B::in_place ? 0 : chunk / NR * panel_stride<E>(smaller(kDepth<E>, steps_of<E>(args.k)))));
    Scratch<A> partial(needs_partial ? block_size * columns : 0);
    if (!memory || !partial)
        return false;
    E *packed_a = memory.data, *packed_b = memory.data + a_size;
    [[maybe_unused]] const Registers<E> registers{};
    for (int64_t block = i0; block < i0 + rows; block += block_size) {
        const int64_t block_rows = smaller(block_size, i0 + rows - block);
        for (int64_t k0 = 0; k0 < args.k; k0 += kDepthElements) {
            const int64_t depth = smaller(kDepthElements, args.k - k0);
            for (int64_t i = 0; i < block_rows; i += kStripRows<E>)
                pack_a<E, T>(args, plan.product.a, block + i, smaller(kStripRows<E>, block_rows - i), k0, depth,
                             packed_a + i * kRowStride<E>);
            for (int64_t j = 0; j < columns; j += chunk) {
                const int64_t width = smaller(chunk, columns - j);
                const Chunk<E> of_b = b.chunk(k0, depth, j0 + j, width, packed_b);
                (args.a_col == 1
                     ? multiply_block<E, T, InRows<kRowStride<E>>>
                     : multiply_block<E, T, Packed<E, kRowStride<E>>>)(plan, packed_a, of_b.operands, of_b.panel,
                                                                       needs_partial ? partial.data + j : nullptr,
                                                                       columns, k0, depth, block, block_rows, j0 + j,
                                                                       width);
            }
        }
    }
    return true;
}

// How a product is divided among at most `threads`: equal parts of columns; a tall or narrow one divides its rows
// instead.
struct Parts {
    int64_t threads, columns, column_parts, row_parts; // columns of a part
    int64_t strip_rows;
    int64_t first_row(const MatmulArgs &args, int64_t part) const {
        return smaller(args.m, ceil_div(args.m, strip_rows) * part / row_parts * strip_rows);
    }
};
template <class E> Parts parts_of(const MatmulArgs &args, int64_t threads, bool packs_a) {
    constexpr int64_t NR = kTileColumns<E>;
    Parts parts{args.m * args.n * args.k < kParallelWork ? 1 : threads, 0, ceil_div(args.n, kPartColumns), 1,
                kStripRows<E>};
    const int64_t panels = ceil_div(args.n, NR);
    if (parts.threads > 1) {
        // Threads that divide columns each pack all of A, and those that divide rows all of B.
        const bool pays_in_rows = packs_a && args.m > args.n && args.m >= 8 * kStripRows<E> * parts.threads;
        if (!pays_in_rows && (panels >= 4 * parts.threads || panels % parts.threads == 0))
            parts.column_parts = round_up(parts.column_parts, parts.threads);
        else
            parts.row_parts = parts.threads;
    }
    parts.columns = ceil_div(panels, parts.column_parts) * NR;
    parts.column_parts = ceil_div(args.n, parts.columns);
    return parts;
}

// f(i0, rows, j0, columns) for each part of the output, by as many threads as that pays for. f returns false where
// memory ran out.
template <class E, class F> bool for_each_part(const MatmulArgs &args, bool packs_a, F f) {
    const Parts parts = parts_of<E>(args, runtime::threads_here(), packs_a);
    Failure failure;
    auto compute = [&](int64_t task) {
        const int64_t part = task / parts.column_parts, j0 = task % parts.column_parts * parts.columns;
        const int64_t first = parts.first_row(args, part), last = parts.first_row(args, part + 1);
        if (first < last && !f(first, last - first, j0, smaller(parts.columns, args.n - j0)))
            failure.set();
    };
    if (parts.threads > 1)
        parallel_tasks(parts.column_parts * parts.row_parts, compute);
    else
        for (int64_t task = 0; task < parts.column_parts; ++task)
            compute(task);
    return !failure.happened;
}

template <class E, class T, class B>
bool multiply_many(const MatmulArgs &args, const Product<T> &product, const B &b, const Acc<E> *bias) {
    const Plan<E, T> plan{args, product, bias, writes_directly<Acc<E>>(args)};
    return for_each_part<E>(args, true, [&](int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
        return multiply_part<E, T>(plan, b, i0, rows, j0, columns);
    });
}

// ---- few rows
// -----------------------------------------------------------------------------------------------------------

// B is read once, where it lies: packing it would cost as much as all the rest. Each half of the depth is one chain of
// multiply-adds, and the sums of both are added: where threads would have short pieces of rows, two of them take a half
// each.
//
// In a block of rows of B a few registers of columns are walked down at a time, their sums in registers, while the same
// place of the next block is fetched: so memory is read along as many rows as a block has, in each in order. A walk
// through the whole depth would read a page for each row, and a row of B at a time would read and write all sums for
// it.
//
// Two cases read rows of B side by side instead, as long streams: a single row of A has so few sums that 12 rows of B
// pay (but for pairs, whose two rows of B are put together first: they walk), and of 16 registers too few would be left
// for columns. Those read four rows that lie a quarter of the half apart, and then the four after them: each stream
// goes on where a row of B ends, so the hardware runs ahead in all four by itself.
// Vectors of columns whose sums stay in registers, with their columns of B and an element of A.
constexpr int kMostVectors = 8;
constexpr int vectors_at_once(int rows) {
    constexpr int kRegisters = kManyRegisters ? 32 : 16;
    return (kRegisters - 1) / (rows + 1) < kMostVectors ? (kRegisters - 1) / (rows + 1) : kMostVectors;
}
// Rows of a block of B, and columns: the block waits in a second-level cache, beside the next one and the sums. Few
// rows of A wait for memory, which likes long pieces of rows; more of them for multiply-adds, between which sums change
// registers once a block.
template <class E> NF_INLINE int64_t walk_rows(int64_t rows) { return smaller(64, larger(2, rows) * 8 * kElements<E>); }
template <class E> NF_INLINE int64_t walk_columns(int64_t rows) { return (64 << 10) / walk_rows<E>(rows); }

// sums (ROWS x VECTORS registers) += a (InPanels) @ columns of b, `n` of the last register. `elements` of the depth;
// what lies `ahead` of them is fetched into the second-level cache.
template <class E, class T, int ROWS, int VECTORS>
static void walk_down(int64_t elements, const E *a, const T *b, int64_t b_row, int n, int64_t ahead, Acc<E> *sums,
                      int64_t sums_row) {
    typedef Acc<E> A;
    constexpr int W = kLanes<E>, kLineElements = 64 / int(sizeof(T));
    Vec<A> sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            sum[i][v] = load(sums + i * sums_row + v * W);
    for (int64_t k = 0; k < elements; k += kElements<E>, a += step_of_strip(ROWS), b += kElements<E> * b_row) {
        Vec<E> x[VECTORS];
        for (int row = 0; row < kElements<E>; ++row)
#pragma GCC unroll 8
            for (int line = 0; line < VECTORS * W; line += kLineElements)
                __builtin_prefetch(b + ahead + row * b_row + line, 0, 2);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            x[v] = load_across<E>(b + v * W, b_row, v + 1 < VECTORS ? W : n, k + 1 < elements);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const Vec<E> element = broadcast(a[i]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                sum[i][v] = multiply_add<E>(element, x[v], sum[i][v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            store(sums + i * sums_row + v * W, sum[i][v]);
}
template <class E, class T>
using WalkFunction = void (*)(int64_t elements, const E *a, const T *b, int64_t b_row, int n, int64_t ahead,
                              Acc<E> *sums, int64_t sums_row);
// The function for 1 <= rows <= kTileRows and vectors_at_once(rows) registers of columns, or for one.
template <class E, class T> NF_INLINE WalkFunction<E, T> walk_function(int64_t rows, bool single) {
#define NF_ROWS(r) walk_down<E, T, (r <= kTileRows ? r : 1), vectors_at_once(r <= kTileRows ? r : 1)>
#define NF_SINGLE(r) walk_down<E, T, (r <= kTileRows ? r : 1), 1>
    static constexpr WalkFunction<E, T> several[] = {
        NF_ROWS(1), NF_ROWS(2), NF_ROWS(3),  NF_ROWS(4),  NF_ROWS(5),  NF_ROWS(6),  NF_ROWS(7),
        NF_ROWS(8), NF_ROWS(9), NF_ROWS(10), NF_ROWS(11), NF_ROWS(12), NF_ROWS(13), NF_ROWS(14),
    };
    static constexpr WalkFunction<E, T> one[] = {
        NF_SINGLE(1), NF_SINGLE(2), NF_SINGLE(3),  NF_SINGLE(4),  NF_SINGLE(5),  NF_SINGLE(6),  NF_SINGLE(7),
        NF_SINGLE(8), NF_SINGLE(9), NF_SINGLE(10), NF_SINGLE(11), NF_SINGLE(12), NF_SINGLE(13), NF_SINGLE(14),
    };
#undef NF_ROWS
#undef NF_SINGLE
    return single ? one[rows - 1] : several[rows - 1];
}

// Rows of B that are read side by side, and registers of columns of them: of 16 registers 4 x 3, 3 of sums and one of
// an element of A.
constexpr int kRowsOfB = kManyRegisters ? 12 : 4, kRowVectors = kManyRegisters ? 1 : 3;
template <class E> constexpr int kSteps = kManyRegisters ? kRowsOfB / kElements<E> : kRowsOfB;
// Sums of one row in L2, beside what streams through it: the longer the pieces of rows are, the better the hardware
// reads ahead. Those of several rows, read and written for each four rows of B, near L1 or in it.
NF_INLINE int64_t bytes_of_sums(int64_t rows) { return (rows == 1 ? 256 : rows <= 4 ? 64 : 16) << 10; }

// sums (rows x columns) += STEPS steps, `apart` from each other, of a (InPanels) times those of b. `whole`: the last
// pair has both elements. What lies `ahead` (0: nothing) is fetched into the second-level cache: a row is too short for
// the hardware to run ahead in it.
template <class E, class T, int STEPS>
void add_steps(int64_t rows, int64_t columns, const E *a, const T *b, int64_t b_row, int64_t apart, bool whole,
               int64_t ahead, Acc<E> *sums, int64_t sums_row) {
    typedef Acc<E> A;
    constexpr int kLineElements = 64 / int(sizeof(T));
    const int64_t a_step = apart * step_of_strip(rows), b_step = apart * kElements<E> * b_row;
    auto add = [&](int64_t j, auto vectors, int n) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        if (ahead != 0) {
#pragma GCC unroll 12
            for (int s = 0; s < STEPS; ++s)
#pragma GCC unroll 2
                for (int k = 0; k < kElements<E>; ++k)
#pragma GCC unroll 4
                    for (int line = 0; line < V * kLanes<E>; line += kLineElements)
                        __builtin_prefetch(b + s * b_step + k * b_row + j + ahead + line, 0, 2);
        }
        Vec<E> row[STEPS][V];
#pragma GCC unroll 12
        for (int s = 0; s < STEPS; ++s)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                row[s][v] = load_across<E>(b + s * b_step + j + v * kLanes<E>, b_row, n, s + 1 < STEPS || whole);
        for (int64_t i = 0; i < rows; ++i) {
            A *to = sums + i * sums_row + j;
            Vec<A> sum[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                sum[v] = load(to + v * kLanes<A>);
#pragma GCC unroll 12
            for (int s = 0; s < STEPS; ++s) {
                const Vec<E> element = broadcast(a[s * a_step + i]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v)
                    sum[v] = multiply_add<E>(element, row[s][v], sum[v]);
            }
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                store(to + v * kLanes<A>, sum[v]);
        }
    };
    constexpr int W = kLanes<E>;
    int64_t j = 0;
    for (; j + kRowVectors * W <= columns; j += kRowVectors * W)
        add(j, std::integral_constant<int, kRowVectors>{}, W);
    for (; j + W <= columns; j += W)
        add(j, std::integral_constant<int, 1>{}, W);
    if (j < columns)
        add(j, std::integral_constant<int, 1>{}, int(columns - j));
}

// All rows of A, at most kFewRows, as equal strips of at most kTileRows (InPanels); a single row as it is, step after
// step. (No strip of several has only one row.)
NF_INLINE int64_t rows_of_strip(int64_t rows) { return ceil_div(rows, ceil_div(rows, kTileRows)); }
template <class E> struct Strips {
    int64_t count, rows, steps; // rows: of each but the last; steps: of the depth
    Scratch<E> packed;
    template <class T>
    Strips(const MatmulArgs &args, const T *a)
        : count(ceil_div(args.m, kTileRows)), rows(rows_of_strip(args.m)), steps(steps_of<E>(args.k)),
          packed(size_of(args.m, steps)) {
        if (!packed)
            return;
        if (args.m == 1) {
            if (args.a_col == 1)
                pack_rows<E, T, 0>(args.k, 1, a, 0, packed.data);
            else
                pack_columns_in_rows<E, T, 0>(args.k, 1, a, args.a_col, packed.data);
            return;
        }
        for (int64_t strip = 0, i = 0; strip < count; ++strip, i += rows)
            pack_rows_in_panel<E, T>(args.k, smaller(rows, args.m - i), a + i * args.a_row, args.a_row, args.a_col,
                                     Acc<E>(1), packed.data + strip * steps * kTileRows);
    }
    static int64_t size_of(int64_t m, int64_t steps) {
        return ceil_div(m, kTileRows) * step_of_strip(m) * steps + kLanes<E>;
    }
    const E *strip(int64_t index, int64_t step = 0) const {
        return packed.data + (index * steps + step) * step_of_strip(rows);
    }
};

// Chunks of columns, equal ones, one for each thread at least, or for each two that take a half of the depth each.
struct FewRows {
    bool walks, divides_depth;
    int64_t threads, width, count;
};
// Halves of a lesser depth are not worth the second array of sums.
constexpr int64_t kDividedDepth = 256;
template <class E> FewRows few_rows_of(const MatmulArgs &args, int64_t threads) {
    FewRows chunks{kManyRegisters && (args.m > 1 || kElements<E> == 2), false,
                   args.m * args.n * args.k < kParallelWork ? 1 : threads, 0, 0};
    const int64_t most =
        chunks.walks ? walk_columns<E>(args.m) : bytes_of_sums(args.m) / args.m / int64_t(sizeof(Acc<E>));
    const int64_t vectors = chunks.walks ? vectors_at_once(int(rows_of_strip(args.m))) : kRowVectors;
    const int64_t least = ceil_div(args.n, most);
    chunks.divides_depth = chunks.threads % 2 == 0 && least < chunks.threads && args.k >= kDividedDepth;
    chunks.count = round_up(least, chunks.divides_depth ? chunks.threads / 2 : chunks.threads);
    chunks.width = round_up(ceil_div(args.n, chunks.count), vectors * kLanes<E>);
    chunks.count = ceil_div(args.n, chunks.width);
    return chunks;
}

// b's rows are contiguous.
template <class E, class T>
bool few_rows_straight(const MatmulArgs &args, const Product<T> &product, const Acc<E> *bias) {
    typedef Acc<E> A;
    constexpr int64_t W = kLanes<E>;
    const Strips<E> a(args, product.a);
    if (!a.packed)
        return false;

    const FewRows chunks = few_rows_of<E>(args, runtime::threads_here());
    const int64_t sums_row = chunks.width + W; // rows a power of two apart share cache sets
    auto columns_of = [&](int64_t chunk) { return smaller(chunks.width, args.n - chunk * chunks.width); };
    // sums += steps [first, last) of a times columns [j0, j0 + columns) of b; generic: compiled where it is used.
    [[maybe_unused]] auto walk = [&](auto j0, int64_t columns, int64_t first, int64_t last, A *sums) {
        const int64_t at_once = vectors_at_once(int(a.rows)) * W, of_block = walk_rows<E>(args.m);
        const int64_t end = smaller(last * kElements<E>, args.k);
        const int64_t fetched = chunks.divides_depth ? end : args.k; // so far: another half is another thread's
        for (int64_t k0 = first * kElements<E>, k1; k0 < end; k0 = k1) {
            k1 = smaller(k0 + of_block, end);
            // The next block, or the first one of the next columns.
            const int64_t ahead = k1 < fetched           ? (k1 - k0) * args.b_row
                                  : chunks.divides_depth ? 0
                                                         : smaller(columns, args.n - j0 - columns) - k0 * args.b_row;
            for (int64_t j = 0, width; j < columns; j += width) {
                const bool single = columns - j < at_once;
                width = single ? smaller(W, columns - j) : at_once;
                for (int64_t strip = 0; strip < a.count; ++strip) // the last one may have rows of zeros
                    walk_function<E, T>(a.rows, single)(
                        k1 - k0, a.strip(strip, k0 / kElements<E>), product.b + k0 * args.b_row + j0 + j, args.b_row,
                        int(single ? width : W), ahead, sums + strip * a.rows * sums_row + j, sums_row);
            }
        }
    };
    auto stream = [&](int64_t j0, int64_t columns, int64_t first, int64_t last, A *sums) {
        // `count` steps from `step` on, `apart` from each other; those `next` after them are fetched, if any.
        auto add = [&](auto count, int64_t step, int64_t apart, int64_t next) {
            constexpr int C = decltype(count)::value;
            const int64_t k = step * kElements<E>;
            const bool whole = (step + (C - 1) * apart + 1) * kElements<E> <= args.k;
            for (int64_t strip = 0, i = 0; strip < a.count; ++strip, i += a.rows)
                add_steps<E, T, C>(smaller(a.rows, args.m - i), columns, a.strip(strip, step),
                                   product.b + j0 + k * args.b_row, args.b_row, apart, whole,
                                   next * kElements<E> * args.b_row, sums + i * sums_row, sums_row);
        };
        constexpr std::integral_constant<int, kSteps<E>> side_by_side{};
        int64_t step = first;
        if constexpr (kManyRegisters) {
            const int64_t fetched = chunks.divides_depth ? last : args.k / kElements<E>; // as in a walk
            for (; step + kSteps<E> <= last; step += kSteps<E>)
                add(side_by_side, step, 1, step + 2 * kSteps<E> <= fetched ? kSteps<E> : 0);
        } else {
            const int64_t quarter = (last - first) / kSteps<E>;
            for (; step < first + quarter; ++step)
                add(side_by_side, step, quarter, args.m > 1 && step + 1 < first + quarter ? 1 : 0);
            step = first + quarter * kSteps<E>;
        }
        for (; step + 3 <= last; step += 3)
            add(std::integral_constant<int, 3>{}, step, 1, 0);
        for (; step < last; ++step)
            add(std::integral_constant<int, 1>{}, step, 1, 0);
    };
    const int64_t size = a.count * a.rows * sums_row; // of the sums of a half
    auto add_half = [&](int64_t chunk, int64_t half, A *sums) {
        const int64_t middle = a.steps / 2, first = half * middle, last = half ? a.steps : middle;
        memset(sums, 0, size_t(size) * sizeof(A));
        if constexpr (kManyRegisters) {
            if (chunks.walks)
                return walk(chunk * chunks.width, columns_of(chunk), first, last, sums);
        }
        stream(chunk * chunks.width, columns_of(chunk), first, last, sums);
    };
    auto finish_halves = [&](int64_t chunk, A *sums) {
        put(sums + size, sums_row, args.m, columns_of(chunk), sums, sums_row, true);
        finish<A, T>(args, product, bias, sums, sums_row, 0, args.m, chunk * chunks.width, columns_of(chunk));
    };
    if (chunks.divides_depth) {
        Scratch<A> sums(chunks.count * 2 * size);
        if (!sums)
            return false;
        parallel_tasks(chunks.count * 2, [&](int64_t task) { add_half(task / 2, task % 2, sums.data + task * size); });
        parallel_tasks(chunks.count, [&](int64_t chunk) { finish_halves(chunk, sums.data + chunk * 2 * size); });
        return true;
    }
    Failure failure;
    auto compute = [&](int64_t chunk) {
        Scratch<A> sums(2 * size);
        if (!sums)
            return failure.set();
        add_half(chunk, 0, sums.data);
        add_half(chunk, 1, sums.data + size);
        finish_halves(chunk, sums.data);
    };
    if (chunks.threads > 1)
        parallel_tasks(chunks.count, compute);
    else
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk)
            compute(chunk);
    return !failure.happened;
}

// b is transposed, its columns are contiguous: dot products of ROWS rows with COLUMNS columns, one chain a lane.
template <class E, class T, int ROWS, int COLUMNS>
void dot_products(int64_t depth, const T *a, int64_t a_row, const T *b, int64_t b_col, Acc<E> *sums, int64_t sums_row,
                  int64_t sums_col) {
    typedef Acc<E> A;
    constexpr int kRegister = kLanes<E> * kElements<E>, kCount = ROWS * COLUMNS;
    Vec<A> sum[kCount];
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i)
        sum[i] = Vec<A>{};
    auto step = [&](int64_t k, int elements) __attribute__((always_inline)) {
        Vec<E> x[ROWS];
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; ++i)
            x[i] = load_along<E>(a + i * a_row + k, elements);
#pragma GCC unroll 16
        for (int j = 0; j < COLUMNS; ++j) {
            const Vec<E> y = load_along<E>(b + j * b_col + k, elements);
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; ++i)
                sum[i * COLUMNS + j] = multiply_add<E>(x[i], y, sum[i * COLUMNS + j]);
        }
    };
    int64_t k = 0;
    for (; k + kRegister <= depth; k += kRegister)
        step(k, kRegister);
    if (k < depth)
        step(k, int(depth - k));
    if constexpr (kCount % kLanes<A> == 0) {
        alignas(kVectorBytes) A total[kCount];
        for (int group = 0; group < kCount; group += kLanes<A>)
            store(total + group, sums_of_lanes<A>(reinterpret_cast<Vec<A>(&)[kLanes<A>]>(sum[group])));
        for (int i = 0; i < kCount; ++i)
            sums[i / COLUMNS * sums_row + i % COLUMNS * sums_col] = total[i];
    } else {
        for (int i = 0; i < kCount; ++i)
            sums[i / COLUMNS * sums_row + i % COLUMNS * sums_col] = reduce_add<A>(sum[i]);
    }
}

// Columns side by side: with one row as many as there are registers for their sums. They are not neighbours but
// kRunColumns apart, so that each goes on in memory where the one before it ended: few long streams, in which the
// hardware runs ahead.
constexpr int kSideBySide = 4;
constexpr int64_t kRunColumns = 32, kGroupColumns = kSideBySide * kRunColumns; // of one task

template <class E, class T>
bool few_rows_transposed(const MatmulArgs &args, const Product<T> &product, const Acc<E> *bias) {
    typedef Acc<E> A;
    Scratch<T> a(args.m * args.k);
    if (!a)
        return false;
    for (int64_t i = 0; i < args.m; ++i)
        for (int64_t k = 0; k < args.k; ++k)
            a.data[i * args.k + k] = product.a[i * args.a_row + k * args.a_col];
    parallel_ranges(
        ceil_div(args.n, kGroupColumns), larger(1, kParallelWork / larger(1, args.m * args.k * kGroupColumns)),
        [&](int64_t begin, int64_t end) {
            alignas(kVectorBytes) A sums[kFewRows * kGroupColumns];
            for (int64_t group = begin; group < end; ++group) {
                const int64_t j0 = group * kGroupColumns, columns = smaller(kGroupColumns, args.n - j0);
                const T *b = product.b + j0 * args.b_col;
                // All rows with columns j, j + apart, ..., `count` of them.
                auto all_rows = [&](int64_t j, int64_t apart, auto count) {
                    constexpr int C = decltype(count)::value;
                    int64_t i = 0;
                    auto rows_at_once = [&](auto rows, auto at_once) {
                        constexpr int R = decltype(rows)::value, S = decltype(at_once)::value;
                        for (; i + R <= args.m; i += R)
                            for (int64_t c = 0; c < C; c += S)
                                dot_products<E, T, R, S>(
                                    args.k, a.data + i * args.k, args.k, b + (j + c * apart) * args.b_col,
                                    apart * args.b_col, sums + i * kGroupColumns + j + c * apart, kGroupColumns, apart);
                    };
                    constexpr int kOfFour = kManyRegisters ? C : (C + 1) / 2; // columns, of 4 rows
                    rows_at_once(std::integral_constant<int, 4>{}, std::integral_constant<int, kOfFour>{});
                    rows_at_once(std::integral_constant<int, 2>{}, count);
                    rows_at_once(std::integral_constant<int, 1>{}, count);
                };
                const int64_t run = columns / kSideBySide;
                for (int64_t j = 0; j < run; ++j)
                    all_rows(j, run, std::integral_constant<int, kSideBySide>{});
                for (int64_t j = run * kSideBySide; j < columns; ++j)
                    all_rows(j, 1, std::integral_constant<int, 1>{});
                finish<A, T>(args, product, bias, sums, kGroupColumns, 0, args.m, j0, columns);
            }
        });
    return true;
}

// B was packed beforehand: a panel has its whole depth, so sums stay in registers; where panels are read one by one
// (panels.hpp), for a piece of it.
struct FewRowsStored {
    int64_t threads, at_once, of_task; // panels
};
template <class E> FewRowsStored few_rows_stored_of(const MatmulArgs &args, int64_t threads) {
    const int64_t at_once = args.m <= kTileRows ? panels_at_once(int(args.m)) : 1;
    const int64_t panels = ceil_div(kParallelWork / 2, larger(1, args.m * args.k * kTileColumns<E>));
    return {args.m * args.n * args.k < kParallelWork ? 1 : threads, at_once,
            round_up(larger(kMostPanels, panels), at_once)};
}
template <class E, class T, class S>
bool few_rows_stored(const MatmulArgs &args, const Product<T> &product, const S *units, const Acc<E> *bias) {
    typedef Acc<E> A;
    constexpr int64_t NR = kTileColumns<E>, kSumsRow = kMostPanels * NR;
    constexpr int64_t kFirstLines = 4; // of a panel: what the hardware needs to see that it is read in order
    const int64_t panels = ceil_div(args.n, NR);
    const Strips<E> a(args, product.a);
    if (!a.packed)
        return false;
    const FewRowsStored parts = few_rows_stored_of<E>(args, runtime::threads_here());
    auto compute = [&](int64_t begin, int64_t end) {
        alignas(kVectorBytes) A sums[kFewRows * kSumsRow];
        for (int64_t p = begin, count; p < end; p += count) {
            count = p + parts.at_once <= end ? parts.at_once : 1;
            const S *of_b = units + p * args.panel;
            const int64_t piece = count == 1 ? kPieceDepth<S> : args.k;
            if (count > 1)
                for (int64_t next = count; next < 2 * count; ++next)
                    for (int64_t line = 0; line < kFirstLines; ++line)
                        __builtin_prefetch(reinterpret_cast<const char *>(of_b + next * args.panel) +
                                           line * runtime::kLineBytes);
            for (int64_t k0 = 0; k0 < args.k; k0 += piece)
                for (int64_t strip = 0, i = 0; strip < a.count; ++strip, i += a.rows)
                    panels_function<E, S>(smaller(a.rows, args.m - i), count == 1)(
                        smaller(piece, args.k - k0), a.strip(strip, k0 / kElements<E>), of_b + k0 / kUnitDepth<S> * NR,
                        args.panel, sums + i * kSumsRow, kSumsRow, k0 > 0, strip + 1 == a.count);
            finish<A, T>(args, product, bias, sums, kSumsRow, 0, args.m, p * NR, smaller(count * NR, args.n - p * NR));
        }
    };
    if (parts.threads == 1)
        compute(0, panels);
    else
        parallel_tasks(ceil_div(panels, parts.of_task), [&](int64_t task) {
            compute(task * parts.of_task, smaller(panels, (task + 1) * parts.of_task));
        });
    return true;
}

// ---- one product, the batch
// ---------------------------------------------------------------------------------------------

enum class Way { no_terms, short_depth, many_rows, few_rows_straight, few_rows_transposed, few_rows_stored };
template <class T> NF_INLINE Way way_of(const MatmulArgs &args) {
    if (args.k == 0)
        return Way::no_terms;
    if (has_short_depth<T>(args, kFewRows))
        return Way::short_depth;
    if (args.m > kFewRows)
        return Way::many_rows;
    if (args.stored != Stored::none)
        return Way::few_rows_stored;
    return args.b_col == 1 ? Way::few_rows_straight : Way::few_rows_transposed;
}

// Several products: one a thread, if there are enough of them to keep all threads busy to the end.
NF_INLINE bool divides_batch(const MatmulArgs &args, int64_t batch, int64_t threads) {
    return batch > 1 && threads > 1 && args.m * args.n * larger(1, args.k) * batch >= kParallelWork &&
           (batch % threads == 0 || batch >= 4 * threads);
}
// Small ones are taken several at a time, as long as each thread still finds some.
NF_INLINE int64_t products_of_task(const MatmulArgs &args, int64_t batch, int64_t threads) {
    const int64_t work = larger(1, args.m * args.n * args.k);
    return larger(1, smaller(kParallelWork / 4 / work, batch / (8 * threads)));
}
NF_INLINE int64_t batch_of(const MatmulArgs &args) {
    int64_t batch = 1;
    for (int axis = 0; axis < args.batch_axes; ++axis)
        batch *= args.batch_shape[axis];
    return batch;
}

// f(S{}) for the type of the units that a product of T with `stored` reads; what goes with what is checked before.
template <class T, class F> NF_INLINE bool with_stored(Stored stored, F f) {
    if constexpr (sizeof(T) == 8) {
        return f(double{});
    } else {
        switch (stored) {
        case Stored::f16:
            return f(f16{});
        case Stored::bf16_pairs:
            return f(StoredPair{});
        case Stored::i8:
            return f(int8_t{});
        default:
            return f(float{});
        }
    }
}
// Operands: those of T where the units are of its type, else what both can be widened to.
template <class T, class S> struct OperandWith {
    typedef Acc<T> type;
};
template <> struct OperandWith<bf16, StoredPair> : OperandOf<bf16> {};

template <class A, class T> bool multiply_one(const MatmulArgs &args, const Product<T> &product, const A *bias) {
    typedef typename OperandOf<T>::type E;
    const Way way = way_of<T>(args);
    if constexpr (std::is_same_v<T, A>)
        if (way == Way::short_depth) {
            const Plan<A, A> plan{args, product, bias, writes_directly<A>(args)};
            if (args.m * args.n * args.k < kParallelWork) // the smallest do without the divisions of parts_of
                return multiply_short<A>(plan, 0, args.m, 0, args.n);
            return for_each_part<A>(args, false, [&](int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
                return multiply_short<A>(plan, i0, rows, j0, columns);
            });
        }
    if (way == Way::no_terms) {
        for (int64_t i = 0; i < args.m; ++i)
            for (int64_t j = 0; j < args.n; ++j) {
                const A zero = 0;
                finish<A, T>(args, product, bias, &zero, 0, i, 1, j, 1);
            }
        return true;
    }
    if (args.stored != Stored::none)
        return with_stored<T>(args.stored, [&](auto unit) {
            typedef decltype(unit) S;
            typedef typename OperandWith<T, S>::type Operand;
            const S *units = static_cast<const S *>(args.b);
            if (way == Way::many_rows)
                return multiply_many<Operand, T>(args, product, StoredB<Operand, S>{args, units}, bias);
            return few_rows_stored<Operand, T, S>(args, product, units, bias);
        });
    switch (way) {
    case Way::many_rows:
        return multiply_many<E, T>(args, product, ArrayB<E, T>{args, product.b}, bias);
    case Way::few_rows_straight:
        return few_rows_straight<E, T>(args, product, bias);
    default:
        return few_rows_transposed<E, T>(args, product, bias);
    }
}

template <class A> void load_bias(const MatmulArgs &args, A *bias) {
    auto copy = [&](auto type) {
        const decltype(type) *from = static_cast<const decltype(type) *>(args.bias);
        for (int64_t j = 0; j < args.n; ++j)
            bias[j] = A(load_one(from + j));
    };
    switch (args.bias_type) {
    case DType::f32:
        return copy(float{});
    case DType::f64:
        return copy(double{});
    case DType::f16:
        return copy(f16{});
    default:
        return copy(bf16{});
    }
}

template <class T> bool matmul(const MatmulArgs &args) {
    typedef Acc<T> A;
    const int64_t batch = batch_of(args);
    if (batch == 0 || args.m == 0 || args.n == 0)
        return true;
    Scratch<A> bias(args.bias ? args.n : 0);
    if (!bias)
        return false;
    if (args.bias)
        load_bias<A>(args, bias.data);
    const int64_t out_size = kItemSize[int(args.out_type)];

    auto one = [&](int64_t index) {
        int64_t a = 0, b = 0, out = 0, residual = 0, preactivation = 0;
        for (int axis = args.batch_axes - 1; axis >= 0; --axis) {
            const int64_t i = index % args.batch_shape[axis];
            index /= args.batch_shape[axis];
            a += i * args.a_batch[axis];
            b += i * args.b_batch[axis];
            out += i * args.out_batch[axis];
            residual += i * args.residual_batch[axis];
            preactivation += i * args.preactivation_batch[axis];
        }
        Product<T> product;
        product.a = static_cast<const T *>(args.a) + a;
        product.b = static_cast<const T *>(args.b) + b; // or a PackedMatrix's panels, which no batch axis moves
        product.out = static_cast<char *>(args.out) + out * out_size;
        product.residual = args.residual ? static_cast<const char *>(args.residual) + residual * out_size : nullptr;
        product.preactivation =
            args.preactivation ? static_cast<char *>(args.preactivation) + preactivation * out_size : nullptr;
        return multiply_one<A, T>(args, product, args.bias ? bias.data : nullptr);
    };

    Failure failure;
    if (divides_batch(args, batch, runtime::threads_here())) {
        const int64_t of_task = products_of_task(args, batch, runtime::threads_here());
        parallel_tasks(ceil_div(batch, of_task), [&](int64_t task) {
            for (int64_t index = task * of_task; index < smaller(batch, (task + 1) * of_task); ++index)
                if (!one(index))
                    failure.set();
        });
    } else {
        for (int64_t index = 0; index < batch; ++index)
            if (!one(index))
                failure.set();
    }
    return !failure.happened;
}

// ---- packing beforehand

void size_of_packed(Stored stored, int64_t k, int64_t n, int64_t &item, int64_t &panel, int64_t &units) {
    auto tell_size = [&](auto unit) {
        typedef decltype(unit) S;
        item = sizeof(S);
        panel = stored_panel<S>(k);
        units = ceil_div(n, kPanelColumns<S>) * panel;
        return true;
    };
    if (stored == Stored::f64)
        tell_size(double{});
    else
        with_stored<float>(stored, tell_size);
}

template <class T> void pack_matrix(const PackMatrixArgs &args) {
    const T *b = static_cast<const T *>(args.b);
    if constexpr (sizeof(T) == 8)
        return pack_stored<T, double>(args, b);
    else
        with_stored<float>(args.stored, [&](auto unit) {
            pack_stored<T, decltype(unit)>(args, b);
            return true;
        });
}

void unpack_matrix(const PackMatrixArgs &args) {
    if (args.stored == Stored::f64)
        return unpack_stored<double, double>(args);
    with_stored<float>(args.stored, [&](auto unit) {
        unpack_stored<float, decltype(unit)>(args);
        return true;
    });
}

// ---- what a call is going to do, from the functions above that decide it

template <class T> void plan_matmul(const MatmulArgs &args, nf::Plan &plan) {
    typedef Acc<T> A;
    typedef typename OperandOf<T>::type E;
    const int64_t batch = batch_of(args), NR = kTileColumns<E>, steps = steps_of<E>(args.k);
    if (batch == 0 || args.m == 0 || args.n == 0) {
        plan.path = "nothing to compute";
        return;
    }
    const bool divided = divides_batch(args, batch, runtime::threads_here());
    const int64_t threads = divided ? 1 : runtime::threads_here(); // within one product
    int64_t threads_used = 1, size = 0;                            // size: bytes a product
    tell(plan, "products", batch);
    switch (way_of<T>(args)) {
    case Way::no_terms:
        plan.path = "a sum of no terms: bias, activation and residual only";
        break;
    case Way::short_depth: {
        plan.path = reads_b_in_place<T>(args) ? "short depth: both operands where they lie"
                                              : "short depth: A where it lies, B in panels";
        const Parts parts = parts_of<E>(args, threads, false);
        threads_used = parts.threads > 1 ? runtime::threads_for(parts.column_parts * parts.row_parts, 1) : 1;
        if (!reads_b_in_place<T>(args))
            size = threads_used * far_bytes<T>(args, smaller(parts.columns, args.n));
        tell(plan, "tile_rows", kTileRows);
        tell(plan, "tile_columns", NR);
        tell(plan, "parts_of_rows", parts.row_parts);
        tell(plan, "parts_of_columns", parts.column_parts);
        tell_whether(plan, "tiles_are_written_to_the_output", writes_directly<A>(args));
        break;
    }
    case Way::many_rows: {
        if (args.stored != Stored::none)
            plan.path = args.a_col == 1 ? "blocks: A packed in rows, B in the panels that it was stored in"
                                        : "blocks: A packed from its transpose, B in the panels that it was stored in";
        else
            plan.path = args.a_col == 1 ? "blocks: A packed in rows, B in panels"
                                        : "blocks: A packed from its transpose, B in panels";
        const Parts parts = parts_of<E>(args, threads, true);
        const bool direct = writes_directly<A>(args);
        const int64_t tasks = parts.column_parts * parts.row_parts, columns = smaller(parts.columns, args.n);
        int64_t rows = 0;
        for (int64_t part = 0; part < parts.row_parts; ++part)
            rows = larger(rows, parts.first_row(args, part + 1) - parts.first_row(args, part));
        threads_used = parts.threads > 1 ? runtime::threads_for(tasks, 1) : 1;
        const int64_t panels = columns_of_chunk<E>(columns) / NR, depth = smaller(kDepth<E>, steps);
        const int64_t partial = !direct && steps > kDepth<E> ? rows_of_block<E>(rows) * columns : 0;
        bool in_place = false;
        if (args.stored != Stored::none)
            with_stored<T>(args.stored, [&](auto unit) {
                typedef decltype(unit) S;
                return in_place = StoredB<typename OperandWith<T, S>::type, S>::in_place;
            });
        const int64_t packed_b = in_place ? 0 : panels * panel_stride<E>(depth);
        size = threads_used * (int64_t(sizeof(E)) * (rows_of_block<E>(rows) * kRowStride<E> + packed_b) +
                               int64_t(sizeof(A)) * partial);
        tell(plan, "tile_rows", kStripRows<E>);
        tell(plan, "tile_columns", NR);
        tell(plan, "block_depth", smaller(kDepthElements, args.k));
        tell(plan, "block_rows", rows_of_block<E>(rows));
        tell(plan, "chunk_columns", columns_of_chunk<E>(columns));
        tell(plan, "parts_of_rows", parts.row_parts);
        tell(plan, "parts_of_columns", parts.column_parts);
        tell_whether(plan, "tiles_are_written_to_the_output", direct);
        break;
    }
    case Way::few_rows_straight: {
        const FewRows chunks = few_rows_of<E>(args, threads);
        plan.path = chunks.walks ? "few rows: blocks of B are walked down where they lie"
                                 : "few rows: rows of B are read side by side where they lie";
        const int64_t tasks = chunks.count * (chunks.divides_depth ? 2 : 1);
        threads_used = chunks.threads > 1 ? runtime::threads_for(tasks, 1) : 1;
        const int64_t rows = rows_of_strip(args.m), sums = chunks.divides_depth ? tasks : 2 * threads_used;
        size = int64_t(sizeof(E)) * Strips<E>::size_of(args.m, steps) +
               int64_t(sizeof(A)) * sums * round_up(args.m, rows) * (chunks.width + kLanes<E>);
        tell(plan, "rows_of_b_at_once", chunks.walks ? walk_rows<E>(args.m) : kRowsOfB);
        tell(plan, "columns_of_a_task", smaller(chunks.width, args.n));
        tell_whether(plan, "threads_divide_the_depth", chunks.divides_depth);
        break;
    }
    case Way::few_rows_stored: {
        plan.path = "few rows: B is read in the panels that it was stored in";
        const FewRowsStored parts = few_rows_stored_of<E>(args, threads);
        threads_used = parts.threads == 1 ? 1 : runtime::threads_for(ceil_div(ceil_div(args.n, NR), parts.of_task), 1);
        size = int64_t(sizeof(E)) * Strips<E>::size_of(args.m, steps);
        tell(plan, "panels_at_once", parts.at_once);
        tell(plan, "columns_of_a_task", parts.of_task * NR);
        break;
    }
    case Way::few_rows_transposed: {
        plan.path = "few rows, B transposed: dot products along its columns, where they lie";
        const int64_t grain = larger(1, kParallelWork / larger(1, args.m * args.k * kGroupColumns));
        threads_used = divided ? 1 : runtime::threads_for(ceil_div(args.n, kGroupColumns), grain);
        size = int64_t(sizeof(T)) * args.m * args.k;
        tell(plan, "columns_at_once", kSideBySide);
        tell(plan, "columns_of_a_task", kGroupColumns);
        break;
    }
    }
    plan.threads = divided ? runtime::threads_for(batch, 1) : threads_used;
    plan.scratch = size * (divided ? plan.threads : 1) + (args.bias ? args.n : 0) * int64_t(sizeof(A));
    tell_whether(plan, "threads_divide_the_products", divided);
    tell(plan, "bits_of_the_sums", 8 * int64_t(sizeof(A)));
    tell_whether(plan, "pairs_are_multiplied_in_their_own_type", kElements<E> == 2);
}

} // namespace

void fill_matmul(Kernels &table) {
    table.matmul[int(DType::f32)] = matmul<float>;
    table.matmul[int(DType::f64)] = matmul<double>;
    table.matmul[int(DType::f16)] = matmul<f16>;
    table.matmul[int(DType::bf16)] = matmul<bf16>;
    table.size_of_packed = size_of_packed;
    table.pack_matrix[int(DType::f32)] = pack_matrix<float>;
    table.pack_matrix[int(DType::f64)] = pack_matrix<double>;
    table.pack_matrix[int(DType::f16)] = pack_matrix<f16>;
    table.pack_matrix[int(DType::bf16)] = pack_matrix<bf16>;
    table.unpack_matrix = unpack_matrix;
    table.plan_matmul[int(DType::f32)] = plan_matmul<float>;
    table.plan_matmul[int(DType::f64)] = plan_matmul<double>;
    table.plan_matmul[int(DType::f16)] = plan_matmul<f16>;
    table.plan_matmul[int(DType::bf16)] = plan_matmul<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
