// Matrix multiply: out = activation(scale * a @ b + bias) + residual.
//
// Blocking after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008):
//   depth in blocks of kDepth: a tile's rows of A, 14 x 512 floats = 28 KiB, stay in L1 while they meet a chunk of
//   columns of B, packed into panels that fill 3/4 of L2 and are used by all rows of a block (at most kBlockRows).
// The output is divided into parts, columns for each thread or, where columns are few, rows: parts share nothing, so
// there is one fork and one join and no barrier. Each packs an element of A once a block of depth, and one of B once a
// block of rows. Transposes cost nothing but the order in which packing reads: rows of A are copied as rows (InRows)
// or, from a transposed A, with depth outermost (InPanels).
//
// Up to kFewRows rows (decoding) nothing of B is used twice, so it is read in place.
//
// Order of sums: each block of kDepth is one chain of multiply-adds, blocks are added in order. kDepth is a constant of
// the level, so bits do not depend on threads or caches.
#include "kernels/activation.hpp"
#include "kernels/tile.hpp"
#include "runtime/caches.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

constexpr int kDepth = 512;
constexpr int kRowStride = kDepth + 16; // rows a multiple of 4 KiB apart would share cache sets
// Rows of A that are packed at once: B's chunks are packed again for each block, 1/1344 of the multiply-adds; and
// 1344 x 528 floats are 2.7 MiB.
constexpr int64_t kBlockRows = 1344;
constexpr int64_t kPartColumns = 2048; // of one part: threads that are held up leave whole parts to others
constexpr int64_t kFewRows = 16;
// Packing of B: rows that are copied in turn, and how far ahead they are fetched.
constexpr int64_t kPackRows = 4, kPrefetchRows = 8;
// Below this many multiply-adds a fork and join costs more than it saves (about 5 microseconds).
constexpr int64_t kParallelWork = 400000;

// From one packed panel of B to the next: a little more than its size, for panels a power of two apart share cache
// sets.
template <class A> constexpr int64_t panel_stride(int64_t depth) { return depth * kTileColumns<A> + 2 * kLanes<A>; }

// Columns of B whose panels fill 3/4 of the second-level cache, in whole panels.
template <class A> int64_t chunk_columns() {
    const int64_t panel = panel_stride<A>(kDepth) * int64_t(sizeof(A));
    return larger(1, runtime::second_level_cache() * 3 / 4 / panel) * kTileColumns<A>;
}

// One matrix product of the batch.
template <class T> struct Product {
    const T *a, *b;
    char *out, *preactivation;
    const char *residual;
};

// ---- epilogue: the only place that knows bias, activation, residual, preactivation and the type of the output
// ----------

template <class A, class O>
void finish_rows(const MatmulArgs &args, const A *bias, const A *sums, int64_t sums_row, int64_t rows, int64_t columns,
                 O *out, const O *residual, O *preactivation) {
    const Vec<A> scale = broadcast(A(args.scale));
    for (int64_t i = 0; i < rows; ++i) {
        O *to = out + i * args.out_row;
        for_each_vector<A>(columns, [&](int64_t j, int n) {
            Vec<A> y = load_some(sums + i * sums_row + j, n) * scale;
            if (bias)
                y += load_some(bias + j, n);
            if (preactivation)
                store_some(preactivation + i * args.preactivation_row + j, y, n);
            y = activate<A>(args.activation, y);
            if (residual)
                y += load_some(residual + i * args.residual_row + j, n);
            if (args.accumulate)
                y += load_some(to + j, n);
            store_some(to + j, y, n);
        });
    }
}

// Sums of rows [i0, i0 + rows) x columns [j0, j0 + columns) are complete: write the output.
template <class A, class T>
void finish(const MatmulArgs &args, const Product<T> &product, const A *bias, const A *sums, int64_t sums_row,
            int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    auto write = [&](auto type) {
        typedef decltype(type) O;
        O *out = reinterpret_cast<O *>(product.out) + i0 * args.out_row + j0;
        const O *residual = reinterpret_cast<const O *>(product.residual);
        O *preactivation = reinterpret_cast<O *>(product.preactivation);
        finish_rows<A, O>(args, bias ? bias + j0 : nullptr, sums, sums_row, rows, columns, out,
                          residual ? residual + i0 * args.residual_row + j0 : nullptr,
                          preactivation ? preactivation + i0 * args.preactivation_row + j0 : nullptr);
    };
    if constexpr (sizeof(A) == 8) { // float64 in, float64 out
        write(double{});
    } else {
        switch (args.out_type) {
        case DType::f16:
            return write(f16{});
        case DType::bf16:
            return write(bf16{});
        default:
            return write(float{});
        }
    }
}

// ---- many rows
// ----------------------------------------------------------------------------------------------------------

// Rows [i, i + rows) of A, depth [k0, k0 + depth): one tile's left operand.
template <class A, class T>
void pack_a(const MatmulArgs &args, const T *a, int64_t i, int64_t rows, int64_t k0, int64_t depth, A *packed) {
    a += i * args.a_row + k0 * args.a_col;
    if (args.a_col != 1)
        return pack_rows_in_panel<A, T>(depth, rows, a, args.a_row, args.a_col, A(1), packed);
    for (int64_t r = 0; r < rows; ++r)
        for_each_vector<A>(depth, [&](int64_t k, int n) {
            store_some(packed + r * kRowStride + k, load_some(a + r * args.a_row + k, n), n);
        });
}

// Rows of A packed at once, and columns of B, where a part of the output has so many: equal blocks.
NF_INLINE int64_t rows_of_block(int64_t rows) {
    return round_up(ceil_div(rows, ceil_div(rows, kBlockRows)), kTileRows);
}
template <class A> int64_t columns_of_chunk(int64_t columns) {
    constexpr int64_t NR = kTileColumns<A>;
    return ceil_div(ceil_div(columns, NR), ceil_div(columns, chunk_columns<A>())) * NR;
}

// Depth [k0, k0 + depth), columns [j0, j0 + columns) of B: panels of kTileColumns columns, `panel` elements apart.
template <class A, class T>
void pack_b(const MatmulArgs &args, const T *b, int64_t k0, int64_t depth, int64_t j0, int64_t columns, int64_t panel,
            A *packed) {
    constexpr int64_t NR = kTileColumns<A>;
    b += k0 * args.b_row + j0 * args.b_col;
    const int64_t whole = args.b_col == 1 ? columns / NR : 0; // along rows of B: its reading order
    constexpr int kLineElements = 64 / int(sizeof(T));
    for (int64_t k = 0; k < depth; k += kPackRows) {
        const int64_t rows = smaller(kPackRows, depth - k);
        for (int64_t p = 0; p < whole; ++p)
            for (int64_t r = 0; r < rows; ++r) {
                const T *from = b + (k + r) * args.b_row + p * NR;
                A *to = packed + p * panel + (k + r) * NR;
                // A row of the chunk is too short for the hardware to run ahead in it.
                for (int line = 0; line < NR; line += kLineElements)
                    __builtin_prefetch(from + kPrefetchRows * args.b_row + line);
                for (int v = 0; v < kTileVectors; ++v)
                    store(to + v * kLanes<A>, load(from + v * kLanes<A>));
            }
    }
    for (int64_t p = whole; p * NR < columns; ++p)
        pack_panel<A, T>(depth, smaller(NR, columns - p * NR), b + p * NR * args.b_col, args.b_row, args.b_col,
                         packed + p * panel);
}

// to (rows x columns) = or += sums.
template <class A>
void put(const A *sums, int64_t sums_row, int64_t rows, int64_t columns, A *to, int64_t to_row, bool add) {
    for (int64_t r = 0; r < rows; ++r)
        for_each_vector<A>(columns, [&](int64_t c, int n) {
            const Vec<A> sum = load_some(sums + r * sums_row + c, n);
            A *p = to + r * to_row + c;
            store_some(p, add ? load_some(p, n) + sum : sum, n);
        });
}

// What the tasks of one product share.
template <class A, class T> struct Plan {
    const MatmulArgs &args;
    const Product<T> &product;
    const A *bias;
    bool direct; // nothing but sums is wanted, in their own type: tiles are written where they belong
};

// Rows [i0, i0 + rows) x columns [j0, j0 + columns) of the output, of which A and B were packed for depth [k0, k0 +
// depth). `partial` holds the sums of the blocks of depth before, or is null.
template <class A, class T, class Layout>
void multiply_block(const Plan<A, T> &plan, const A *packed_a, const A *packed_b, A *partial, int64_t partial_row,
                    int64_t k0, int64_t depth, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    constexpr int64_t NR = kTileColumns<A>;
    const MatmulArgs &args = plan.args;
    const bool first = k0 == 0, last = k0 + depth == args.k, add = !first || args.accumulate;
    alignas(kVectorBytes) A tile[kTileRows * kTileColumns<A>];
    for (int64_t i = 0; i < rows; i += kTileRows) {
        const int64_t tile_rows = smaller(kTileRows, rows - i);
        const A *a = packed_a + i * kRowStride;
        for (int64_t j = 0; j < columns; j += NR) {
            const int64_t tile_columns = smaller(NR, columns - j);
            const A *b = packed_b + j / NR * panel_stride<A>(depth);
            const auto multiply = tile_for<A, A, Layout>(tile_rows, tile_columns);
            A *out = reinterpret_cast<A *>(plan.product.out) + (i0 + i) * args.out_row + j0 + j; // if direct
            if (plan.direct && tile_columns == NR) {
                multiply(depth, a, b, NR, out, args.out_row, add ? Store::add : Store::write);
                continue;
            }
            multiply(depth, a, b, NR, tile, NR, Store::write);
            if (plan.direct) {
                put(tile, NR, tile_rows, tile_columns, out, args.out_row, add);
            } else if (partial) {
                A *sums = partial + i * partial_row + j;
                put(tile, NR, tile_rows, tile_columns, sums, partial_row, !first);
                if (last)
                    finish<A, T>(args, plan.product, plan.bias, sums, partial_row, i0 + i, tile_rows, j0 + j,
                                 tile_columns);
            } else {
                finish<A, T>(args, plan.product, plan.bias, tile, NR, i0 + i, tile_rows, j0 + j, tile_columns);
            }
        }
    }
}

// A part of the output: rows [i0, i0 + rows) x columns [j0, j0 + columns).
template <class A, class T>
bool multiply_part(const Plan<A, T> &plan, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    constexpr int64_t NR = kTileColumns<A>;
    const MatmulArgs &args = plan.args;
    const int64_t block_size = rows_of_block(rows);
    const int64_t a_size = block_size * kRowStride;
    const int64_t chunk = columns_of_chunk<A>(columns);
    // Sums of several blocks of depth wait in memory of their own, for the output may be a narrower type or an input.
    const bool needs_partial = !plan.direct && args.k > kDepth;
    Scratch<A> memory(a_size + chunk / NR * panel_stride<A>(smaller(kDepth, args.k)));
    Scratch<A> partial(needs_partial ? block_size * columns : 0);
    if (!memory || !partial)
        return false;
    A *packed_a = memory.data, *packed_b = memory.data + a_size;
    for (int64_t block = i0; block < i0 + rows; block += block_size) {
        const int64_t block_rows = smaller(block_size, i0 + rows - block);
        for (int64_t k0 = 0; k0 < args.k; k0 += kDepth) {
            const int64_t depth = smaller(kDepth, args.k - k0);
            for (int64_t i = 0; i < block_rows; i += kTileRows)
                pack_a<A, T>(args, plan.product.a, block + i, smaller(kTileRows, block_rows - i), k0, depth,
                             packed_a + i * kRowStride);
            for (int64_t j = 0; j < columns; j += chunk) {
                const int64_t width = smaller(chunk, columns - j);
                pack_b<A, T>(args, plan.product.b, k0, depth, j0 + j, width, panel_stride<A>(depth), packed_b);
                (args.a_col == 1 ? multiply_block<A, T, InRows<kRowStride>>
                                 : multiply_block<A, T, InPanels>)(plan, packed_a, packed_b,
                                                                   needs_partial ? partial.data + j : nullptr, columns,
                                                                   k0, depth, block, block_rows, j0 + j, width);
            }
        }
    }
    return true;
}

template <class A> NF_INLINE bool writes_directly(const MatmulArgs &args) {
    const bool same_type = args.out_type == (sizeof(A) == 8 ? DType::f64 : DType::f32);
    return same_type && args.scale == 1 && !args.bias && !args.residual && !args.preactivation &&
           args.activation == Activation::none;
}

// How a product is divided among at most `threads`: equal parts of columns; a narrow product divides its rows instead.
struct Parts {
    int64_t threads, columns, column_parts, row_parts; // columns of a part
    int64_t first_row(const MatmulArgs &args, int64_t part) const {
        return smaller(args.m, ceil_div(args.m, kTileRows) * part / row_parts * kTileRows);
    }
};
template <class A> Parts parts_of(const MatmulArgs &args, int64_t threads) {
    constexpr int64_t NR = kTileColumns<A>;
    Parts parts{args.m * args.n * args.k < kParallelWork ? 1 : threads, 0, ceil_div(args.n, kPartColumns), 1};
    const int64_t panels = ceil_div(args.n, NR);
    if (parts.threads > 1) {
        if (panels >= 4 * parts.threads || panels % parts.threads == 0)
            parts.column_parts = round_up(parts.column_parts, parts.threads);
        else
            parts.row_parts = parts.threads;
    }
    parts.columns = ceil_div(panels, parts.column_parts) * NR;
    parts.column_parts = ceil_div(args.n, parts.columns);
    return parts;
}

template <class A, class T> bool multiply_many(const MatmulArgs &args, const Product<T> &product, const A *bias) {
    const Plan<A, T> plan{args, product, bias, writes_directly<A>(args)};
    const Parts parts = parts_of<A>(args, runtime::threads_here());
    Failure failure;
    auto compute = [&](int64_t task) {
        const int64_t part = task / parts.column_parts, j0 = task % parts.column_parts * parts.columns;
        const int64_t first = parts.first_row(args, part), last = parts.first_row(args, part + 1);
        if (first < last && !multiply_part<A, T>(plan, first, last - first, j0, smaller(parts.columns, args.n - j0)))
            failure.set();
    };
    if (parts.threads > 1)
        parallel_tasks(parts.column_parts * parts.row_parts, compute);
    else
        for (int64_t task = 0; task < parts.column_parts; ++task)
            compute(task);
    return !failure.happened;
}

// ---- few rows
// -----------------------------------------------------------------------------------------------------------

// b's rows are contiguous: a register tile walks down B in place; only the last, partial, columns are packed.
template <class A, class T, int VECTORS>
bool few_rows_straight(const MatmulArgs &args, const Product<T> &product, const A *bias) {
    constexpr int64_t NR = VECTORS * kLanes<A>;
    Scratch<A> packed_a(args.k * round_up(args.m, kTileRows) + kLanes<A>);
    if (!packed_a)
        return false;
    for (int64_t i = 0; i < args.m; i += kTileRows)
        pack_rows_in_panel<A, T>(args.k, smaller(kTileRows, args.m - i), product.a + i * args.a_row, args.a_row,
                                 args.a_col, A(1), packed_a.data + i * args.k);
    Failure failure;
    const int64_t panels = ceil_div(args.n, NR);
    parallel_ranges(
        panels, larger(1, kParallelWork / larger(1, args.m * args.k * NR)), [&](int64_t begin, int64_t end) {
            alignas(kVectorBytes) A tile[kTileRows * NR];
            for (int64_t panel = begin; panel < end; ++panel) {
                const int64_t j = panel * NR, columns = smaller(NR, args.n - j);
                Scratch<A> tail(columns < NR ? args.k * NR : 0);
                if (!tail)
                    return failure.set();
                if (columns < NR)
                    pack_straight<A, T>(args.k, columns, NR, product.b + j, args.b_row, tail.data, NR);
                for (int64_t i = 0; i < args.m; i += kTileRows) {
                    const int64_t rows = smaller(kTileRows, args.m - i);
                    const A *a = packed_a.data + i * args.k;
                    if (columns < NR)
                        tile_of_rows<A, A, InPanels, VECTORS>(rows)(args.k, a, tail.data, NR, tile, NR, Store::write);
                    else
                        tile_of_rows<A, T, InPanels, VECTORS>(rows)(args.k, a, product.b + j, args.b_row, tile, NR,
                                                                    Store::write);
                    finish<A, T>(args, product, bias, tile, NR, i, rows, j, columns);
                }
            }
        });
    return !failure.happened;
}

// b is transposed, its columns are contiguous: dot products of ROWS rows with COLUMNS columns, lanes added at the end.
template <class A, class T, int ROWS, int COLUMNS>
void dot_products(int64_t depth, const A *a, int64_t a_row, const T *b, int64_t b_col, A *sums, int64_t sums_row) {
    Vec<A> sum[ROWS][COLUMNS] = {};
    int64_t k = 0;
    auto step = [&](int n) __attribute__((always_inline)) {
        Vec<A> x[ROWS];
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; ++i)
            x[i] = load_some(a + i * a_row + k, n);
#pragma GCC unroll 16
        for (int j = 0; j < COLUMNS; ++j) {
            const Vec<A> y = load_some(b + j * b_col + k, n);
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; ++i)
                sum[i][j] = fma(x[i], y, sum[i][j]);
        }
    };
    for (; k + kLanes<A> <= depth; k += kLanes<A>) {
#pragma GCC unroll 16
        for (int j = 0; j < COLUMNS; ++j)
            __builtin_prefetch(b + (j + COLUMNS) * b_col + k);
        step(kLanes<A>);
    }
    if (k < depth)
        step(int(depth - k));
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < COLUMNS; ++j)
            sums[i * sums_row + j] = reduce_add<A>(sum[i][j]);
}

constexpr int64_t kColumns = 16; // columns of one task: sums fit in L1, and columns are contiguous in the output

template <class A, class T> bool few_rows_transposed(const MatmulArgs &args, const Product<T> &product, const A *bias) {
    Scratch<A> a(args.m * args.k);
    if (!a)
        return false;
    for (int64_t i = 0; i < args.m; ++i)
        for (int64_t k = 0; k < args.k; ++k)
            a.data[i * args.k + k] = load_one(product.a + i * args.a_row + k * args.a_col);
    parallel_ranges(
        ceil_div(args.n, kColumns), larger(1, kParallelWork / larger(1, args.m * args.k * kColumns)),
        [&](int64_t begin, int64_t end) {
            alignas(kVectorBytes) A sums[kFewRows * kColumns];
            for (int64_t group = begin; group < end; ++group) {
                const int64_t j0 = group * kColumns, columns = smaller(kColumns, args.n - j0);
                const T *b = product.b + j0 * args.b_col;
                int64_t i = 0;
                auto rows_at_once = [&](auto rows, auto at_once) {
                    constexpr int R = decltype(rows)::value, C = decltype(at_once)::value;
                    for (; i + R <= args.m; i += R) {
                        int64_t j = 0;
                        for (; j + C <= columns; j += C)
                            dot_products<A, T, R, C>(args.k, a.data + i * args.k, args.k, b + j * args.b_col,
                                                     args.b_col, sums + i * kColumns + j, kColumns);
                        for (; j < columns; ++j)
                            dot_products<A, T, R, 1>(args.k, a.data + i * args.k, args.k, b + j * args.b_col,
                                                     args.b_col, sums + i * kColumns + j, kColumns);
                    }
                };
                rows_at_once(std::integral_constant<int, 4>{}, std::integral_constant<int, 4>{});
                rows_at_once(std::integral_constant<int, 1>{}, std::integral_constant<int, 8>{});
                finish<A, T>(args, product, bias, sums, kColumns, 0, args.m, j0, columns);
            }
        });
    return true;
}

// ---- one product, the batch
// ---------------------------------------------------------------------------------------------

// Up to so many rows a tile may be twice as wide.
NF_INLINE int64_t few_rows_vectors(const MatmulArgs &args) { return args.m <= kRowsOf<4> ? 4 : kTileVectors; }

enum class Way { no_terms, many_rows, few_rows_straight, few_rows_transposed };
NF_INLINE Way way_of(const MatmulArgs &args) {
    if (args.k == 0)
        return Way::no_terms;
    if (args.m > kFewRows)
        return Way::many_rows;
    return args.b_col == 1 ? Way::few_rows_straight : Way::few_rows_transposed;
}

// Several products: one a thread, if there are enough of them to keep all threads busy to the end.
NF_INLINE bool divides_batch(const MatmulArgs &args, int64_t batch, int64_t threads) {
    return batch > 1 && threads > 1 && args.m * args.n * larger(1, args.k) * batch >= kParallelWork &&
           (batch % threads == 0 || batch >= 4 * threads);
}
NF_INLINE int64_t batch_of(const MatmulArgs &args) {
    int64_t batch = 1;
    for (int axis = 0; axis < args.batch_axes; ++axis)
        batch *= args.batch_shape[axis];
    return batch;
}

template <class A, class T> bool multiply_one(const MatmulArgs &args, const Product<T> &product, const A *bias) {
    switch (way_of(args)) {
    case Way::no_terms:
        for (int64_t i = 0; i < args.m; ++i)
            for (int64_t j = 0; j < args.n; ++j) {
                const A zero = 0;
                finish<A, T>(args, product, bias, &zero, 0, i, 1, j, 1);
            }
        return true;
    case Way::many_rows:
        return multiply_many<A, T>(args, product, bias);
    case Way::few_rows_straight:
        return few_rows_vectors(args) == 4 ? few_rows_straight<A, T, 4>(args, product, bias)
                                           : few_rows_straight<A, T, kTileVectors>(args, product, bias);
    default:
        return few_rows_transposed<A, T>(args, product, bias);
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
        product.b = static_cast<const T *>(args.b) + b;
        product.out = static_cast<char *>(args.out) + out * out_size;
        product.residual = args.residual ? static_cast<const char *>(args.residual) + residual * out_size : nullptr;
        product.preactivation =
            args.preactivation ? static_cast<char *>(args.preactivation) + preactivation * out_size : nullptr;
        return multiply_one<A, T>(args, product, args.bias ? bias.data : nullptr);
    };

    Failure failure;
    if (divides_batch(args, batch, runtime::threads_here())) {
        parallel_tasks(batch, [&](int64_t index) {
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

// ---- what a call is going to do, from the functions above that decide it

template <class T> void plan_matmul(const MatmulArgs &args, nf::Plan &plan) {
    typedef Acc<T> A;
    const int64_t batch = batch_of(args), NR = kTileColumns<A>;
    if (batch == 0 || args.m == 0 || args.n == 0) {
        plan.path = "nothing to compute";
        return;
    }
    const bool divided = divides_batch(args, batch, runtime::threads_here());
    const int64_t threads = divided ? 1 : runtime::threads_here(); // within one product
    int64_t threads_used = 1, size = 0;                            // size: elements a product
    auto few_rows_threads = [&](int64_t columns) { // of the panels or groups that few rows are divided into
        const int64_t grain = larger(1, kParallelWork / larger(1, args.m * args.k * columns));
        return divided ? 1 : runtime::threads_for(ceil_div(args.n, columns), grain);
    };
    tell(plan, "products", batch);
    switch (way_of(args)) {
    case Way::no_terms:
        plan.path = "a sum of no terms: bias, activation and residual only";
        break;
    case Way::many_rows: {
        plan.path = args.a_col == 1 ? "blocks: A packed in rows, B in panels"
                                    : "blocks: A packed from its transpose, B in panels";
        const Parts parts = parts_of<A>(args, threads);
        const bool direct = writes_directly<A>(args);
        const int64_t tasks = parts.column_parts * parts.row_parts, columns = smaller(parts.columns, args.n);
        int64_t rows = 0;
        for (int64_t part = 0; part < parts.row_parts; ++part)
            rows = larger(rows, parts.first_row(args, part + 1) - parts.first_row(args, part));
        threads_used = parts.threads > 1 ? runtime::threads_for(tasks, 1) : 1;
        const int64_t panels = columns_of_chunk<A>(columns) / NR, depth = smaller(kDepth, args.k);
        const int64_t partial = !direct && args.k > kDepth ? rows_of_block(rows) * columns : 0;
        size = threads_used * (rows_of_block(rows) * kRowStride + panels * panel_stride<A>(depth) + partial);
        tell(plan, "tile_rows", kTileRows);
        tell(plan, "tile_columns", NR);
        tell(plan, "block_depth", smaller(kDepth, args.k));
        tell(plan, "block_rows", rows_of_block(rows));
        tell(plan, "chunk_columns", columns_of_chunk<A>(columns));
        tell(plan, "parts_of_rows", parts.row_parts);
        tell(plan, "parts_of_columns", parts.column_parts);
        tell_whether(plan, "tiles_are_written_to_the_output", direct);
        break;
    }
    case Way::few_rows_straight: {
        plan.path = "few rows: B is read where it lies";
        const int64_t columns = few_rows_vectors(args) * kLanes<A>;
        threads_used = few_rows_threads(columns);
        size = args.k * round_up(args.m, kTileRows) + kLanes<A> + (args.n % columns ? args.k * columns : 0);
        tell(plan, "tile_rows", kTileRows);
        tell(plan, "tile_columns", columns);
        break;
    }
    case Way::few_rows_transposed: {
        plan.path = "few rows, B transposed: dot products along its columns, where they lie";
        threads_used = few_rows_threads(kColumns);
        size = args.m * args.k;
        tell(plan, "columns_of_a_task", kColumns);
        break;
    }
    }
    plan.threads = divided ? runtime::threads_for(batch, 1) : threads_used;
    plan.scratch = int64_t(sizeof(A)) * (size * (divided ? plan.threads : 1) + (args.bias ? args.n : 0));
    tell_whether(plan, "threads_divide_the_products", divided);
    tell(plan, "bits_of_the_arithmetic", 8 * int64_t(sizeof(A)));
}

} // namespace

void fill_matmul(Kernels &table) {
    table.matmul[int(DType::f32)] = matmul<float>;
    table.matmul[int(DType::f64)] = matmul<double>;
    table.matmul[int(DType::f16)] = matmul<f16>;
    table.matmul[int(DType::bf16)] = matmul<bf16>;
    table.plan_matmul[int(DType::f32)] = plan_matmul<float>;
    table.plan_matmul[int(DType::f64)] = plan_matmul<double>;
    table.plan_matmul[int(DType::f16)] = plan_matmul<f16>;
    table.plan_matmul[int(DType::bf16)] = plan_matmul<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
