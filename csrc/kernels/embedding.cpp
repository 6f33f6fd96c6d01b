// embedding: y_i = table[id_i];   backward: dtable[id_i] += dy_i, over i in order.
//
// The backward gives each thread its own columns of the table: no two threads write to one place and every sum runs
// over the tokens in order, however many threads there are. Sums of 16-bit gradients are kept in float.
#include "kernels/rows.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

bool embedding(const EmbeddingArgs &args) {
    const int64_t bytes = args.columns * args.item_size;
    parallel_ranges(args.count, row_grain(args.columns), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            memcpy(static_cast<char *>(args.out) + i * bytes,
                   static_cast<const char *>(args.rows) + integer_at(args.ids, i) * bytes, size_t(bytes));
    });
    return true;
}

template <class T, class O> bool scatter(const EmbeddingArgs &args) {
    typedef Acc<T> A;
    constexpr bool kDirect = std::is_same<A, O>::value;
    const int64_t columns = args.columns;
    O *out = static_cast<O *>(args.out);
    Scratch<A> scratch(kDirect ? 0 : args.vocabulary * columns);
    if (!scratch)
        return false;
    A *sums = kDirect ? reinterpret_cast<A *>(out) : scratch.data;
    constexpr int64_t kStrip = 64 / int64_t(sizeof(A)); // a cache line of sums
    const int64_t strips = ceil_div(columns, kStrip), elements = (args.count + args.vocabulary) * kStrip;
    parallel_ranges(strips, larger(1, kGrain / larger(1, elements)), [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kStrip, width = smaller(columns, end * kStrip) - first;
        for (int64_t row = 0; row < args.vocabulary; ++row) {
            A *sum = sums + row * columns + first;
            if (!args.accumulate)
                memset(static_cast<void *>(sum), 0, size_t(width) * sizeof(A));
            else if (!kDirect)
                for_each_vector<A>(width, [&](int64_t j, int n) {
                    store_some(sum + j, load_some(out + row * columns + first + j, n), n);
                });
        }
        for (int64_t i = 0; i < args.count; ++i) {
            A *sum = sums + integer_at(args.ids, i) * columns + first;
            const T *dy = static_cast<const T *>(args.rows) + i * columns + first;
            for_each_vector<A>(
                width, [&](int64_t j, int n) { store_some(sum + j, load_some(sum + j, n) + load_some(dy + j, n), n); });
        }
        if (!kDirect)
            for (int64_t row = 0; row < args.vocabulary; ++row)
                for_each_vector<A>(width, [&](int64_t j, int n) {
                    const int64_t at = row * columns + first + j;
                    store_some(out + at, load_some(sums + at, n), n);
                });
    });
    return true;
}

template <class T> bool embedding_backward(const EmbeddingArgs &args) {
    if (sizeof(T) == 2 && args.out_type == DType::f32)
        return scatter<T, Acc<T>>(args);
    return scatter<T, T>(args);
}

} // namespace

void fill_embedding(Kernels &table) {
    table.embedding = embedding;
    NF_FILL(embedding_backward, embedding_backward);
}

} // namespace nf::NUMFORMER_LEVEL
