// What tiles of attention fetch for later: packing, which has little to compute, would wait for memory.
#pragma once
#include "kernels/attention_scores.hpp"
#include "runtime/caches.hpp"

namespace nf::NUMFORMER_LEVEL {

// Rows of arrays that the thread is going to read after a few strips, as the next head's. Tiles fetch them into the
// second-level cache, two lines with each step: a head of few positions has about as many steps as half its lines.
struct FetchLines {
    const char *at, *end;       // of the row
    int64_t to_next, row_bytes; // from the end of a row to the next row
    static constexpr int kOfStep = 2;
    inline void next() {
#pragma GCC unroll 2
        for (int i = 0; i < kOfStep; ++i) {
            __builtin_prefetch(at, 0, 2);
            at += runtime::kLineBytes;
            const bool behind = at == end;
            at += behind ? to_next : 0;
            end += behind ? row_bytes : 0;
        }
    }
};
class Ahead {
    struct Rows {
        const char *first;
        int64_t count, bytes, row_bytes; // of a row, from row to row
        int64_t lines_of_row() const { return ceil_div(bytes, runtime::kLineBytes); }
    };
    static constexpr unsigned kMost = 8; // what comes when so many wait is left out
    Rows parts[kMost];
    unsigned count = 0, part = 0;
    int64_t line = 0; // of this part

  public:
    template <class T> void add(const T *first, int64_t rows, int64_t width, int64_t row) {
        if (part == count)
            part = count = 0;
        if (rows * width > 0 && count < kMost)
            parts[count++] = {reinterpret_cast<const char *>(first), rows, width * int64_t(sizeof(T)),
                              row * int64_t(sizeof(T))};
    }
    bool any() const { return part < count; }
    // The next lines for `steps` steps, or a few behind the last row. There must be any.
    FetchLines take(int64_t steps) {
        const Rows &rows = parts[part];
        const int64_t of_row = rows.lines_of_row(), row = line / of_row, bytes = of_row * runtime::kLineBytes;
        const char *begin = rows.first + row * rows.row_bytes;
        const FetchLines lines{begin + line % of_row * runtime::kLineBytes, begin + bytes, rows.row_bytes - bytes,
                               rows.row_bytes};
        line += FetchLines::kOfStep * steps;
        if (line + steps >= rows.count * of_row) {
            ++part;
            line = 0;
        }
        return lines;
    }
};
template <class E, class Layout>
static void multiply_and_fetch(int64_t depth, const E *a, const E *b, int64_t b_row, Acc<E> *c, int64_t c_row,
                               Store mode, FetchLines lines) {
    multiply_rows<E, kTileRows, kTileVectors>(depth, RowsOfLayout<E, Layout>{a}, b, b_row, c, c_row, mode, lines);
}
// A tile of rows x columns, or as many columns as one has.
template <class E, class Layout>
NF_INLINE void multiply_ahead(Ahead &ahead, int64_t steps, int64_t rows, int64_t columns, const E *a, const E *b,
                              int64_t b_row, Acc<E> *c, int64_t c_row, Store mode) {
    if constexpr (kManyRegisters && !kByMatrices<E>)
        if (rows == kTileRows && columns > kLanes<E> && ahead.any())
            return multiply_and_fetch<E, Layout>(steps, a, b, b_row, c, c_row, mode, ahead.take(steps));
    tile_for<E, Layout>(rows, columns)(steps, a, b, b_row, c, c_row, mode);
}

// c (rows x columns, row stride c_row) += or = a @ b over `depth`, tile by tile along the columns.
template <class E, class Layout>
NF_INLINE void multiply_strip(Ahead &ahead, int64_t depth, int64_t rows, int64_t columns, const E *a,
                              const Panels<E> &b, int64_t b_first, Acc<E> *c, int64_t c_row, Store mode) {
    for (int64_t j = 0; j < columns; j += kTileColumns<E>)
        multiply_ahead<E, Layout>(ahead, steps_of<E>(depth), rows, columns - j, a, b.at(b_first, j), b.row, c + j,
                                  c_row, mode);
}

// What a strip of queries [query, query + rows) reads beside its products with the keys [key0, key0 + width): its rows
// of the bias, and of the mask those of the next strip, which are looked at before it begins.
template <class A, class T>
NF_INLINE void fetch_pairs(const Scoring<A, T> &s, int64_t query, int64_t rows, int64_t key0, int64_t width,
                           Ahead &ahead) {
    const AttentionPairs &bias = s.args->bias, &mask = s.args->mask;
    if (s.bias && bias.key == 1)
        with_bias_row(s, query,
                      [&](auto *row) { ahead.add(row + key0, bias.query == 0 ? 1 : rows, width, bias.query); });
    if (s.mask && mask.key == 1 && mask.query != 0)
        ahead.add(s.mask + (query + rows) * mask.query + key0, smaller(rows, s.args->queries - query - rows), width,
                  mask.query);
}

// The head that a thread takes after head `kv` of its task, which ends before `end`: other threads take the tasks
// between this one and the next. It may be behind the last one.
NF_INLINE int64_t head_after(int64_t kv, int64_t end, int64_t at_once, int64_t threads) {
    return kv + 1 < end ? kv + 1 : kv + 1 + (threads - 1) * at_once;
}

} // namespace nf::NUMFORMER_LEVEL
