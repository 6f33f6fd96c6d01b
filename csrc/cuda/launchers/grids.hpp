// How many blocks a kernel gets.
#pragma once
#include "cuda/api.hpp"
#include "cuda/kernels/rows.hpp"
#include "cuda/launch.hpp"

#include <algorithm>
#include <cmath>

namespace nf::cuda {

// Kernels that loop over the rest: enough blocks to fill any device several times, few enough that starting them is
// nothing.
constexpr int64_t kMostBlocks = 16384;

inline int64_t blocks_for(int64_t count, int64_t of_block) { return std::min(ceil_div(count, of_block), kMostBlocks); }

// f(bool_constant): is a row for the whole block?
template <class F> void with_length(int64_t columns, F f) {
    if (columns > kLongRow)
        f(std::true_type());
    else
        f(std::false_type());
}
template <class A, bool kLong> int64_t row_shared() { return kLong ? shared_bytes<A>(kRowThreads / kWarp) : 0; }
inline int64_t row_blocks(int64_t rows, bool is_long) { return blocks_for(rows, is_long ? 1 : kRowThreads / kWarp); }

// out (columns) (+)= sum over rows of term(row, column, columns); O: of out.
template <class A, class O, class Term>
void sum_over_rows(const char *operation, const Term &term, void *out, int64_t rows, int64_t columns, bool accumulate,
                   const Allocate &allocate, Stream stream) {
    if (columns == 0)
        return;
    const int64_t chunks = ceil_div(rows, kChunkRows);
    A *partial = chunks > 0 ? static_cast<A *>(allocate(chunks * columns * int64_t(sizeof(A)))) : nullptr;
    const ColumnSumArgs<A, Term> sums{term, partial, rows, columns};
    launch(operation, chunks * ceil_div(columns, kWarp), kColumnThreads, shared_bytes<A>(kColumnThreads), stream,
           sum_chunks<A, Term>, sums);
    const AddChunksArgs<A> added{partial, out, chunks, columns, accumulate};
    launch(operation, ceil_div(columns, kColumnThreads), kColumnThreads, 0, stream, add_chunks<A, O>, added);
}

inline uint32_t dropout_limit(double p) { return uint32_t(std::ceil(p * 0x1p24)); }
inline double dropout_factor(double p) { return p < 1 ? 1 / (1 - p) : 0; }

} // namespace nf::cuda
