// The gradient of attention's additive bias: dS, summed over whatever the bias was broadcast over, without an N x M
// matrix beyond the gradient itself.
//
// A bias of shape (queries or 1) x (keys or 1) for some heads ("a slice") gets the sum over the heads that share it.
// One task owns a block of a slice, goes through its heads in order, computes P and dS of each block of 112 queries and
// 256 keys again, and adds them up: by element, down the queries, or along the keys. So the order of every sum is
// fixed, and no two tasks write to the same place.
#include "kernels/attention_backward.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// Block (query0, key0) of dS of one head is added to sums, rows of kGradientStride: row 0 only if `one_query`, column 0
// only if `one_key`.
template <class A, class T>
void add_block(const AttentionArgs &args, const KeySide<A, T> &keys, const QuerySide<A, T> &queries, int64_t query0,
               int64_t key0, bool one_query, bool one_key, A *p, A *ds, A *band, A *sums) {
    Ahead nothing;
    const int64_t key_end = smaller(key0 + kBackwardKeys, args.keys);
    const int64_t query_end = smaller(query0 + kBlockQueries, args.queries);
    for (int64_t query = query0; query < query_end; query += kTileRows) {
        const int64_t rows = smaller(kTileRows, query_end - query);
        const KeyRange span = span_of_keys(queries.scoring, query, rows, key0, key_end);
        const int64_t first = span.first, last = span.last;
        if (first >= last)
            continue;
        if (keys.finite(key0) && queries.finite(query0)) {
            differentiate_strip(args, keys, queries, query, rows, first, last - first, false, A(1), p, ds, band,
                                nothing);
        } else {
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = first; j < last; ++j) {
                    PairGradient<A> pair;
                    const bool seen = differentiate_pair(args, keys, queries, query + i, j, false, A(1), pair);
                    ds[i * kGradientStride + j - first] = seen ? pair.ds : A(0);
                }
        }
        for (int64_t i = 0; i < rows; ++i) {
            A *sum = sums + (one_query ? 0 : query - query0 + i) * kGradientStride;
            const A *row = ds + i * kGradientStride;
            if (one_key) {
                Vec<A> total = {};
                for_each_vector<A>(last - first, [&](int64_t j, int n) { total += load_some(row + j, n); });
                sum[0] += reduce_add<A>(total);
            } else {
                for_each_vector<A>(last - first, [&](int64_t j, int n) {
                    A *to = sum + first - key0 + j;
                    store_some(to, load_some(to, n) + load_some(row + j, n), n);
                });
            }
        }
    }
}

template <class T> bool attention_bias_backward(const AttentionArgs &args) {
    typedef Acc<T> A;
    const AttentionBiasGradient &dbias = args.dbias;
    PackedHeads<A, T> packed(Sequences{&args, 1});
    if (!packed.pack())
        return false;
    const bool one_query = dbias.queries == 1, one_key = dbias.keys == 1;
    const int64_t query_blocks = one_query ? 1 : ceil_div(dbias.queries, kBlockQueries),
                  key_blocks = one_key ? 1 : ceil_div(dbias.keys, kBackwardKeys);
    const int64_t group = args.kv_heads ? args.heads / args.kv_heads : 1;
    Failure failure;
    parallel_tasks(dbias.slices * query_blocks * key_blocks, [&](int64_t task) {
        const int64_t slice = task / (query_blocks * key_blocks);
        const int64_t query0 = task / key_blocks % query_blocks * kBlockQueries,
                      key0 = task % key_blocks * kBackwardKeys;
        constexpr int64_t kSums = kBlockQueries * kGradientStride, kStrip = kTileRows * kGradientStride;
        Scratch<A> work(kSums + 2 * kStrip + kBandSize);
        if (!work)
            return failure.set();
        A *sums = work.data, *p = sums + kSums, *ds = p + kStrip, *band = ds + kStrip;
        memset(sums, 0, size_t(kSums) * sizeof(A));
        const int64_t query_end = one_query ? args.queries : smaller(query0 + kBlockQueries, args.queries),
                      key_end = one_key ? args.keys : smaller(key0 + kBackwardKeys, args.keys);
        for (int64_t member = dbias.first[slice]; member < dbias.first[slice + 1]; ++member) {
            const int64_t batch = dbias.members[member] / args.heads, head = dbias.members[member] % args.heads;
            const KvHead of{&args, batch, head / group, group};
            for (int64_t query = query0; query < query_end; query += kBlockQueries)
                for (int64_t key = key0; key < key_end; key += kBackwardKeys)
                    add_block<A, T>(args, packed.keys_of(of), packed.queries_of(args, batch, head), query, key,
                                    one_query, one_key, p, ds, band, sums);
        }
        const int64_t rows = one_query ? 1 : query_end - query0, columns = one_key ? 1 : key_end - key0;
        const int64_t at = (slice * dbias.queries + query0) * dbias.keys + key0;
        if (std::is_same<T, A>::value || args.bias.type == DType::f32)
            write_rows<A, A>(sums, kGradientStride, rows, columns, static_cast<A *>(dbias.data) + at, dbias.keys);
        else
            write_rows<A, T>(sums, kGradientStride, rows, columns, static_cast<T *>(dbias.data) + at, dbias.keys);
    });
    return !failure.happened;
}

} // namespace

void fill_attention_bias(Kernels &table) {
    table.attention_bias_backward[int(DType::f32)] = attention_bias_backward<float>;
    table.attention_bias_backward[int(DType::f64)] = attention_bias_backward<double>;
    table.attention_bias_backward[int(DType::f16)] = attention_bias_backward<f16>;
    table.attention_bias_backward[int(DType::bf16)] = attention_bias_backward<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
