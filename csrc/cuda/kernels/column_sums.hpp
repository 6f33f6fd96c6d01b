// Sums over the rows of a matrix, a pack of columns a thread, in an order that shape and dtype give: chunks of rows,
// whose warps take every eighth row, then the chunks, of which a warp takes every sixteenth.
#pragma once
#include "cuda/kernels/packs.hpp"
#include "cuda/kernels/rows.hpp"

namespace nf::cuda {

constexpr int kRowWarps = kRowThreads / kWarp;

// out[j] = the sum over the warps of the block of `sums`, (warps, columns).
template <class A> NF_DEVICE void add_warps(Shared<A> sums, int columns, int64_t valid, A *out) {
    barrier();
    for (int j = thread(); j < columns && j < valid; j += kRowThreads) {
        A total = 0;
        for (int i = 0; i < kRowWarps; ++i)
            total += sums[i * columns + j];
        out[j] = total;
    }
    barrier();
}

constexpr int64_t kMatrixRows = 64; // of a chunk

template <class T> struct MatrixSumArgs {
    const T *x;
    Acc<T> *partial; // (chunks, columns)
    int64_t rows, columns, stride;
    bool is_aligned;
};

// partial[chunk][j] = sum over the chunk's rows of x[row][j]; columns is a multiple of a pack.
template <class T> NF_KERNEL(kRowThreads) sum_matrix(NF_ARGS MatrixSumArgs<T> args) {
    constexpr int kCount = kPack<T>, kStrip = kWarp * kCount;
    Shared<Acc<T>> sums = SharedMemory().take<Acc<T>>(kRowWarps * kStrip);
    const int64_t strips = ceil_div(args.columns, kStrip), chunk = block() / strips;
    const int64_t first = block() % strips * kStrip, column = first + lane() * kCount;
    const int64_t end = smaller_of(args.rows, (chunk + 1) * kMatrixRows);
    Acc<T> sum[kCount] = {};
    if (column < args.columns)
        for (int64_t row = chunk * kMatrixRows + warp(); row < end; row += kRowWarps) {
            Acc<T> x[kCount];
            load_pack(args.x + row * args.stride + column, args.is_aligned, x);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                sum[i] += x[i];
        }
    NF_UNROLL
    for (int i = 0; i < kCount; ++i)
        sums[warp() * kStrip + lane() * kCount + i] = sum[i];
    add_warps(sums, kStrip, args.columns - first, args.partial + chunk * args.columns + first);
}

constexpr int kPartialThreads = 512; // 16 warps, for 32 columns

template <class A> struct AddPartialsArgs {
    const A *partial[2]; // of one or two sums: (chunks, columns) each
    void *out[2];
    int64_t chunks, columns;
    bool accumulate;
};

// out[j] (+)= partial[0][j] + partial[1][j] + ...; blocks: those of the first sum, then those of the second.
template <class A, class O> NF_KERNEL(kPartialThreads) add_partials(NF_ARGS AddPartialsArgs<A> args) {
    constexpr int kWarps = kPartialThreads / kWarp;
    Shared<A> sums = SharedMemory().take<A>(kPartialThreads);
    const int64_t strips = ceil_div(args.columns, kWarp), column = block() % strips * kWarp + lane();
    const int which = int(block() / strips);
    A sum = 0;
    if (column < args.columns)
        for (int64_t chunk = warp(); chunk < args.chunks; chunk += kWarps)
            sum += args.partial[which][chunk * args.columns + column];
    sums[thread()] = sum;
    barrier();
    if (warp() == 0 && column < args.columns) {
        O *out = static_cast<O *>(args.out[which]);
        A total = 0;
        for (int i = 0; i < kWarps; ++i)
            total += sums[i * kWarp + lane()];
        store(out, column, args.accumulate ? A(load(out, column)) + total : total);
    }
}

} // namespace nf::cuda
