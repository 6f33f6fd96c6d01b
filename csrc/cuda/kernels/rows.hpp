// What kernels over rows share: who works on a row, and sums over rows in a fixed order.
#pragma once
#include "cuda/device.hpp"

namespace nf::cuda {

constexpr int kRowThreads = 256;
constexpr int64_t kLongRow = 2048; // a row of more elements belongs to the whole block

// The threads that share a row: a warp, or the block. Sums are made in the same order in each thread, so all agree.
template <class A, bool kLong> class RowGroup {
  public:
    NF_DEVICE RowGroup() {
        if constexpr (kLong)
            scratch_ = SharedMemory().take<A>(kRowThreads / kWarp);
    }
    NF_DEVICE int place() const { return kLong ? thread() : lane(); }
    NF_DEVICE int size() const { return kLong ? kRowThreads : kWarp; }
    NF_DEVICE int64_t first_row() const { return kLong ? block() : block() * (kRowThreads / kWarp) + warp(); }
    NF_DEVICE int64_t row_step() const { return kLong ? blocks() : blocks() * (kRowThreads / kWarp); }
    NF_DEVICE void meet() const {
        if constexpr (kLong)
            barrier();
        else
            warp_barrier();
    }
    NF_DEVICE A sum(A value) const {
        if constexpr (kLong)
            return block_sum(value, scratch_);
        else
            return warp_sum(value);
    }
    NF_DEVICE A max(A value) const {
        if constexpr (kLong)
            return block_max(value, scratch_);
        else
            return warp_max(value);
    }

  private:
    Shared<A> scratch_{};
};

// ---- sums over rows: chunks of kChunkRows rows are summed apart, then the chunks in order

constexpr int64_t kChunkRows = 256;
constexpr int kColumnThreads = 256; // 8 warps: each takes every eighth row of the chunk, for 32 columns

template <class A, class Term> struct ColumnSumArgs {
    Term term;
    A *partial; // (chunks, columns)
    int64_t rows, columns;
};

// partial[chunk][j] = sum over the chunk's rows of term(row, j)
template <class A, class Term> NF_KERNEL(kColumnThreads) sum_chunks(NF_ARGS ColumnSumArgs<A, Term> args) {
    constexpr int kWarps = kColumnThreads / kWarp;
    Shared<A> sums = SharedMemory().take<A>(kColumnThreads);
    const int64_t strips = ceil_div(args.columns, kWarp), chunk = block() / strips;
    const int64_t column = block() % strips * kWarp + lane();
    const int64_t end = smaller_of(args.rows, (chunk + 1) * kChunkRows);
    A sum = 0;
    if (column < args.columns)
        for (int64_t row = chunk * kChunkRows + warp(); row < end; row += kWarps)
            sum += args.term(row, column, args.columns);
    sums[thread()] = sum;
    barrier();
    if (warp() == 0 && column < args.columns) {
        A total = 0;
        for (int i = 0; i < kWarps; ++i)
            total += sums[i * kWarp + lane()];
        args.partial[chunk * args.columns + column] = total;
    }
}

template <class A> struct AddChunksArgs {
    const A *partial;
    void *out;
    int64_t chunks, columns;
    bool accumulate;
};

// out[j] (+)= partial[0][j] + partial[1][j] + ...
template <class A, class O> NF_KERNEL(kColumnThreads) add_chunks(NF_ARGS AddChunksArgs<A> args) {
    const int64_t column = block() * kColumnThreads + thread();
    if (column >= args.columns)
        return;
    O *out = static_cast<O *>(args.out);
    A sum = args.accumulate ? A(load(out, column)) : A(0);
    A chunks = 0;
    for (int64_t chunk = 0; chunk < args.chunks; ++chunk)
        chunks += args.partial[chunk * args.columns + column];
    store(out, column, sum + chunks);
}

// The term of a sum of the rows of one matrix, which are `stride` elements apart.
template <class T> struct ElementTerm {
    const T *x;
    int64_t stride;
    NF_DEVICE Acc<T> operator()(int64_t row, int64_t column, int64_t) const { return load(x, row * stride + column); }
};

} // namespace nf::cuda
