// embedding: y_i = table[id_i].  backward: dtable[id_i] += dy_i, over i in order: tokens are sorted by id, stably, so
// that those of one id stand together and in order; the block that finds the first of them adds all.
#pragma once
#include "cuda/kernels/cross_entropy.hpp"

namespace nf::cuda {

constexpr int kEmbeddingThreads = 256;

struct EmbeddingArgs {
    const void *table;
    Integers ids;
    void *out;
    int64_t count, vocabulary, columns;
};
// An id that is not in the table gives NaN.
template <class T> NF_KERNEL(kEmbeddingThreads) embedding(NF_ARGS EmbeddingArgs args) {
    const T *table = static_cast<const T *>(args.table);
    for (int64_t i = block() * kEmbeddingThreads + thread(); i < args.count * args.columns;
         i += blocks() * kEmbeddingThreads) {
        const int64_t id = args.ids[i / args.columns];
        const bool known = id >= 0 && id < args.vocabulary;
        store(static_cast<T *>(args.out), i,
              known ? load(table, id * args.columns + i % args.columns) : not_a_number<Acc<T>>());
    }
}

struct KeysArgs {
    Integers ids;
    uint32_t *keys, *order;
    int64_t count, vocabulary;
};
// What is sorted: ids (the size of the table for those that are not in it), and where they stand.
NF_KERNEL(kEmbeddingThreads) embedding_keys(NF_ARGS KeysArgs args) {
    for (int64_t i = block() * kEmbeddingThreads + thread(); i < args.count; i += blocks() * kEmbeddingThreads) {
        const int64_t id = args.ids[i];
        args.keys[i] = uint32_t(id >= 0 && id < args.vocabulary ? id : args.vocabulary);
        args.order[i] = uint32_t(i);
    }
}

struct EmbeddingBackwardArgs {
    const uint32_t *keys, *order; // sorted
    const void *dy;
    void *out;
    int64_t count, vocabulary, columns;
    bool accumulate;
};
// A block for each place in the sorted list and each strip of columns.
template <class T, class O> NF_KERNEL(kEmbeddingThreads) embedding_backward(NF_ARGS EmbeddingBackwardArgs args) {
    const int64_t strips = ceil_div(args.columns, kEmbeddingThreads), first = block() / strips;
    const uint32_t id = args.keys[first];
    const int64_t column = block() % strips * kEmbeddingThreads + thread();
    if ((first > 0 && args.keys[first - 1] == id) || id >= args.vocabulary || column >= args.columns)
        return;
    O *out = static_cast<O *>(args.out) + id * args.columns;
    Acc<T> sum = args.accumulate ? Acc<T>(load(out, column)) : Acc<T>(0);
    for (int64_t i = first; i < args.count && args.keys[i] == id; ++i)
        sum += load(static_cast<const T *>(args.dy), int64_t(args.order[i]) * args.columns + column);
    store(out, column, sum);
}

} // namespace nf::cuda
