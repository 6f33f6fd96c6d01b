// The gradients of relative positions: of r, and of the biases u and v that are added to the queries,
//
//   dr_x = sum of dS_ij (q_i + v),   dv = sum of dS_ij r_x,   du = sum of dS_ij k_j      (x = middle + i - j)
//
// over the pairs and the samples, dS by the product before softcap and bias, times scale. As for the gradient of a
// bias, P and dS are computed again: one task owns a head and 192 columns of r (see attention_relative.hpp), goes
// through the samples and their blocks of queries in order, and of each strip computes the keys that meet these
// columns. So the order of every sum is fixed, and no two tasks write to the same place. Packed sequences need ranges
// of rows of r that differ: a task owns columns of what they need together, and in each sequence looks at those that it
// has.
#include "kernels/attention_backward.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// A strip meets columns + kTileRows - 1 keys, which begin anywhere in a panel: at most a block of the backward.
constexpr int64_t kColumns = 192, kMargin = 32;
static_assert(kMargin + kColumns + kTileRows + 16 <= kBackwardKeys, "");
// dS of a block, row i from i * kSkewed on: column t of the task stands at t, for all rows.
constexpr int64_t kSkewed = kGradientStride + 1;
constexpr int64_t kSkewedSize = kMargin + kBlockQueries * kSkewed + kGradientStride;

// What a task sums. Rows of dr are columns of r; weights[t] is the sum of dS over column t.
template <class A> struct RelativeSums {
    A *dr, *du, *dv, *weights;
    int64_t row; // of dr; the length of du and dv
    static int64_t size(int64_t row) { return (kColumns + 2) * row + kColumns; }
    RelativeSums behind(int64_t columns) const {
        RelativeSums rest = *this;
        rest.dr += columns * row;
        rest.weights += columns;
        return rest;
    }
    RelativeSums(A *memory, int64_t length)
        : dr(memory), du(dr + kColumns * length), dv(du + length), weights(dv + length), row(length) {}
};

template <class A> struct RelativeScratch {
    A *p, *skewed, *band, *rows, *panels, *by_key;
    static constexpr int64_t kKeys = kColumns + kBlockQueries; // that a block of queries meets
    static int64_t size(const AttentionArgs &args) {
        return kTileRows * kGradientStride + round_up(kSkewedSize, 16) + kBandSize +
               round_up(kBlockQueries * args.dim, 16) + panels_size<A>(kBlockQueries, args.dim) + kKeys;
    }
    RelativeScratch(const AttentionArgs &args, A *memory)
        : p(memory), skewed(p + kTileRows * kGradientStride + kMargin),
          band(p + kTileRows * kGradientStride + round_up(kSkewedSize, 16)), rows(band + kBandSize),
          panels(rows + round_up(kBlockQueries * args.dim, 16)),
          by_key(panels + panels_size<A>(kBlockQueries, args.dim)) {}
};

// dS of the queries [query0, query0 + count) and the columns [t0, t0 + columns), to scratch.skewed.
template <class A, class T>
void differentiate_columns(const AttentionArgs &args, const KeySide<A, T> &keys, const QuerySide<A, T> &queries,
                           int64_t query0, int64_t count, int64_t t0, int64_t columns,
                           const RelativeScratch<A> &scratch) {
    Ahead nothing;
    const int64_t key_of_column = -relative_column(args.relative, 0, 0); // key of query 0 and column 0
    for (int64_t i0 = 0; i0 < count; i0 += kTileRows) {
        const int64_t rows = smaller(kTileRows, count - i0), query = query0 + i0;
        A *ds = scratch.skewed + i0 * kSkewed; // of row l of the strip: key - key0 stands at l * kGradientStride
        memset(ds - kMargin, 0, size_t(rows * kGradientStride) * sizeof(A));
        const int64_t key0 = t0 + key_of_column + query;
        const int64_t begin = larger(0, key0) / kTileColumns<A> * kTileColumns<A>;
        const int64_t end = smaller(args.keys, key0 + columns + rows - 1);
        if (begin >= end)
            continue;
        const KeyRange span = span_of_keys(queries.scoring, query, rows, begin, end);
        if (span.first < span.last)
            differentiate_strip(args, keys, queries, query, rows, span.first, span.last - span.first, true,
                                A(args.scale), scratch.p, ds + (span.first - key0), scratch.band, nothing);
    }
}

// The sums over the queries of one block.
template <class A, class T>
void add_block(const AttentionArgs &args, const KeySide<A, T> &keys, const QuerySide<A, T> &queries, int64_t query0,
               int64_t count, int64_t t0, int64_t columns, const RelativeScratch<A> &scratch,
               const RelativeSums<A> &sums) {
    constexpr int64_t NR = kTileColumns<A>;
    differentiate_columns(args, keys, queries, query0, count, t0, columns, scratch);
    const T *q = queries.q + query0 * args.q.row;
    add_to_queries(q, count, args.dim, args.q.row, queries.relative->bias_v, scratch.rows);
    for (int64_t j = 0; j < args.dim; j += NR)
        pack_straight<A, A>(count, smaller(NR, args.dim - j), NR, scratch.rows + j, args.dim,
                            scratch.panels + j * count, NR);
    const Panels<A> panels{scratch.panels, NR, count * NR};
    Ahead nothing;
    for (int64_t t = 0; t < columns; t += kTileRows)
        multiply_strip<A, InColumns<kSkewed>>(nothing, count, smaller(kTileRows, columns - t), args.dim,
                                              scratch.skewed + t, panels, 0, sums.dr + t * sums.row, sums.row,
                                              Store::add);
    const int64_t met = columns + count - 1;
    memset(scratch.by_key, 0, size_t(met) * sizeof(A));
    for (int64_t i = 0; i < count; ++i)
        for_each_vector<A>(columns, [&](int64_t t, int n) {
            const Vec<A> ds = load_some(scratch.skewed + i * kSkewed + t, n);
            store_some(sums.weights + t, load_some(sums.weights + t, n) + ds, n);
            store_some(scratch.by_key + i + t, load_some(scratch.by_key + i + t, n) + ds, n);
        });
    const int64_t key0 = t0 + query0 - relative_column(args.relative, 0, 0);
    for (int64_t x = larger(0, -key0); x < smaller(met, args.keys - key0); ++x)
        for_each_vector<A>(args.dim, [&](int64_t d, int n) {
            const Vec<A> key = load_some(keys.k + (key0 + x) * args.k.row + d, n);
            store_some(sums.du + d, fma(key, broadcast(scratch.by_key[x]), load_some(sums.du + d, n)), n);
        });
}

// The same where some input is not finite, pair by pair.
template <class A, class T>
void add_block_selecting(const AttentionArgs &args, const KeySide<A, T> &keys, const QuerySide<A, T> &queries,
                         int64_t query0, int64_t count, int64_t t0, int64_t columns, const RelativeSums<A> &sums) {
    const RelativeSide<A, T> &side = *queries.relative;
    for (int64_t i = query0; i < query0 + count; ++i)
        for (int64_t t = 0; t < columns; ++t) {
            const int64_t j = t0 + t + i - relative_column(args.relative, 0, 0);
            PairGradient<A> pair;
            if (j < 0 || j >= args.keys || !differentiate_pair(args, keys, queries, i, j, true, A(args.scale), pair))
                continue;
            const T *q = queries.q + i * args.q.row, *k = keys.k + j * args.k.row;
            const T *r = side.r - (t0 + t) * args.relative.row;
            for (int64_t d = 0; d < args.dim; ++d) {
                sums.dr[t * sums.row + d] += pair.ds * (A(load_one(q + d)) + A(side.bias_v[d]));
                sums.du[d] += pair.ds * A(load_one(k + d));
                sums.dv[d] += pair.ds * A(load_one(r + d));
            }
        }
}

// Do the keys that these queries and columns meet lie in finite blocks?
template <class A, class T>
bool all_met_finite(const AttentionArgs &args, const KeySide<A, T> &keys, int64_t query0, int64_t count, int64_t t0,
                    int64_t columns) {
    const int64_t key0 = t0 + query0 - relative_column(args.relative, 0, 0);
    const int64_t first = larger(0, key0) / kBackwardKeys * kBackwardKeys,
                  last = smaller(args.keys, key0 + columns + count - 1);
    for (int64_t key = first; key < last; key += kBackwardKeys)
        if (!keys.finite(key))
            return false;
    return true;
}

// The rows of r that the sequences need together; no r where none needs any.
AttentionRelative rows_of_all(const Sequences &all) {
    AttentionRelative whole{};
    for (int64_t s = 0; s < all.count; ++s) {
        const AttentionRelative &relative = all.data[s].relative;
        if (!relative.r)
            continue;
        const int64_t end = relative.first + relative.count, end_before = whole.first + whole.count;
        const int64_t first = whole.r ? smaller(whole.first, relative.first) : relative.first;
        const int64_t last = whole.r ? larger(end_before, end) : end;
        whole = relative;
        whole.first = first;
        whole.count = last - first;
    }
    return whole;
}

// What one sequence adds to the sums of a task: of its columns [t0, t0 + columns).
template <class A, class T>
void add_sequence(const AttentionArgs &args, const PackedHeads<A, T> &packed, int64_t head, int64_t t0, int64_t columns,
                  const RelativeScratch<A> &scratch, const RelativeSums<A> &sums) {
    // The queries for which some column is that of a key.
    const int64_t offset = relative_column(args.relative, 0, 0), group = args.heads / args.kv_heads;
    const int64_t first = larger(0, offset - (t0 + columns - 1)) / kBlockQueries * kBlockQueries,
                  last = smaller(args.queries, args.keys + offset - t0);
    for (int64_t batch = 0; batch < args.batches; ++batch)
        for (int64_t query0 = first; query0 < last; query0 += kBlockQueries) {
            const KvHead of{&args, batch, head / group, group};
            const KeySide<A, T> &keys = packed.keys_of(of);
            const QuerySide<A, T> &queries = packed.queries_of(args, batch, head);
            const int64_t count = smaller(kBlockQueries, args.queries - query0);
            if (queries.finite(query0) && all_met_finite(args, keys, query0, count, t0, columns))
                add_block<A, T>(args, keys, queries, query0, count, t0, columns, scratch, sums);
            else
                add_block_selecting<A, T>(args, keys, queries, query0, count, t0, columns, sums);
        }
}

template <class T> bool attention_relative_backward(const AttentionArgs *sequences, int64_t count) {
    typedef Acc<T> A;
    const Sequences all{sequences, count};
    const AttentionRelative relative = rows_of_all(all);
    const int64_t heads = sequences[0].heads, dim = sequences[0].dim;
    PackedHeads<A, T> packed(all);
    const int64_t row = round_up(dim, kTileColumns<A>), blocks = ceil_div(relative.count, kColumns);
    Scratch<A> of_biases(heads * blocks * 2 * row); // du and dv of each task
    if (!packed.pack() || !of_biases)
        return false;
    Failure failure;
    parallel_tasks(heads * blocks, [&](int64_t task) {
        const int64_t head = task / blocks, t0 = task % blocks * kColumns,
                      columns = smaller(kColumns, relative.count - t0);
        const int64_t sums_size = round_up(RelativeSums<A>::size(row), 16);
        Scratch<A> work(sums_size + RelativeScratch<A>::size(sequences[0]));
        if (!work)
            return failure.set();
        const RelativeSums<A> sums(work.data, row);
        const RelativeScratch<A> scratch(sequences[0], work.data + sums_size);
        memset(work.data, 0, size_t(sums_size) * sizeof(A));
        for (int64_t s = 0; s < count; ++s) {
            const AttentionRelative &own = sequences[s].relative;
            if (!own.r)
                continue;
            const int64_t shift = relative.first + relative.count - own.first - own.count; // where its column 0 is
            const int64_t begin = larger(t0, shift), end = smaller(t0 + columns, shift + own.count);
            if (begin < end)
                add_sequence<A, T>(sequences[s], packed, head, begin - shift, end - begin, scratch,
                                   sums.behind(begin - t0));
        }
        // dv: of finite blocks through the sums of dS.
        const T *r = first_column<T>(relative, head) - t0 * relative.row;
        for (int64_t t = 0; t < columns; ++t)
            if (sums.weights[t] != 0)
                for_each_vector<A>(dim, [&](int64_t d, int n) {
                    const Vec<A> of_r = load_some(r - t * relative.row + d, n);
                    store_some(sums.dv + d, fma(of_r, broadcast(sums.weights[t]), load_some(sums.dv + d, n)), n);
                });
        memcpy(of_biases.data + task * 2 * row, sums.du, size_t(2 * row) * sizeof(A));
        T *dr =
            static_cast<T *>(relative.dr) + (head * relative.length + relative.first + relative.count - 1 - t0) * dim;
        write_rows<A, T>(sums.dr, row, columns, dim, dr, -dim);
    });
    if (failure.happened)
        return false;
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t d = 0; d < dim; ++d) {
            double du = 0, dv = 0;
            for (int64_t block = 0; block < blocks; ++block) {
                const A *of_task = of_biases.data + (head * blocks + block) * 2 * row;
                du += double(of_task[d]);
                dv += double(of_task[row + d]);
            }
            relative.du[head * dim + d] = du;
            relative.dv[head * dim + d] = dv;
        }
    return true;
}

} // namespace

void fill_attention_relative(Kernels &table) {
    table.attention_relative_backward[int(DType::f32)] = attention_relative_backward<float>;
    table.attention_relative_backward[int(DType::f64)] = attention_relative_backward<double>;
    table.attention_relative_backward[int(DType::f16)] = attention_relative_backward<f16>;
    table.attention_relative_backward[int(DType::bf16)] = attention_relative_backward<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
