// What the forward and the backward of attention share: blocks, who may attend to whom, operands as tiles want them.
#pragma once
#include "kernels/tile.hpp"
#include "runtime/attention_args.hpp"
#include "simd/math.hpp"

namespace nf::NUMFORMER_LEVEL {

constexpr int64_t kStripsOfBlock = 8;                         // strips of kTileRows queries in a block
constexpr int64_t kBlockQueries = kStripsOfBlock * kTileRows; // 112: its Q, P and O stay in L2

template <class T> NF_INLINE T *head_of(const AttentionOperand &x, int64_t batch, int64_t head) {
    return static_cast<T *>(x.data) + x.batch[batch] + head * x.head;
}

// The sequences of a call, and its (batch, key/value head) number `kv` among all of theirs.
struct Sequences {
    const AttentionArgs *data;
    int64_t count;
    int64_t kv_heads() const {
        const AttentionArgs &last = data[count - 1];
        return last.first_kv_head + last.batches * last.kv_heads;
    }
    int64_t heads() const { return data[count - 1].first_head + data[count - 1].batches * data[count - 1].heads; }
};
struct KvHead {
    const AttentionArgs *args;
    int64_t batch, head, group; // query heads [head * group, (head + 1) * group) share it
};
NF_INLINE KvHead find_kv_head(const Sequences &all, int64_t kv) {
    int64_t low = 0, high = all.count; // the last sequence that begins at or before kv
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (all.data[middle].first_kv_head <= kv ? low : high) = middle;
    }
    const AttentionArgs &args = all.data[low];
    kv -= args.first_kv_head;
    return {&args, kv / args.kv_heads, kv % args.kv_heads, args.heads / args.kv_heads};
}

// Multiply-adds of a whole call, causal or not. Less than kSerialWork takes some 20 us on one thread, and waking others
// does not pay; a task of kTaskWork hides what starting it costs.
constexpr double kSerialWork = 1 << 20, kTaskWork = 1 << 18;
NF_INLINE double work_of(const Sequences &all) {
    double work = 0;
    for (int64_t s = 0; s < all.count; ++s) {
        const AttentionArgs &args = all.data[s];
        work += double(args.batches * args.heads) * double(args.queries) * double(args.keys) *
                double(args.dim + args.value_dim);
    }
    return work;
}
// How many key/value heads make a task, where each is done by one thread.
NF_INLINE int64_t heads_of_task(double work, int64_t kv_heads, int64_t threads) {
    if (work < kSerialWork)
        return larger(1, kv_heads);
    const int64_t enough = int64_t(kTaskWork * double(kv_heads) / work) + 1;
    return larger(1, smaller(enough, kv_heads / (4 * threads)));
}
// Too few heads for the threads: then blocks are divided, too.
NF_INLINE bool divides_blocks(double work, int64_t kv_heads, int64_t threads) {
    return work >= kSerialWork && kv_heads % threads != 0 && kv_heads < 4 * threads;
}

// The keys that query i may attend to before the mask: [first, last).
struct KeyRange {
    int64_t first, last;
};
NF_INLINE KeyRange keys_of(const AttentionArgs &args, int64_t query) {
    return {larger(0, args.low + query), smaller(args.keys, args.high + query + 1)};
}
// The keys that at least one of the queries [begin, end) may attend to: ranges move to the right with the query.
NF_INLINE KeyRange keys_of_any(const AttentionArgs &args, int64_t begin, int64_t end) {
    return {keys_of(args, begin).first, keys_of(args, end - 1).last};
}
// The queries that may attend to at least one of the keys [begin, end).
NF_INLINE KeyRange queries_of_any(const AttentionArgs &args, int64_t begin, int64_t end) {
    return {larger(0, begin - args.high), smaller(args.queries, end - args.low)};
}

template <class A> constexpr A kMinusInfinity = -A(__builtin_inf());
constexpr double kLog2e = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// True if rows x width elements are all finite: x * 0 is 0 for finite x, NaN for inf and NaN.
template <class A, class T> static bool all_finite(const T *x, int64_t rows, int64_t width, int64_t row) {
    Vec<A> sum = {};
    for (int64_t i = 0; i < rows; ++i)
        for_each_vector<A>(width, [&](int64_t j, int n) { sum += load_some(x + i * row + j, n) * A(0); });
    const A total = reduce_add<A>(sum);
    return total == total;
}

// Sizes of what a head is packed into count operands E: elements of the type of the sums, or pairs of bfloat16, which
// are as large.
template <class E> constexpr bool kPairs = kElements<E> == 2;

// A matrix (rows x columns) as the right operand of tiles: panels of kTileColumns columns. It is read where it lies if
// its type and width allow, else from a packed copy. Rows are the depth: of pairs, the first one must be even.
template <class E> struct Panels {
    const E *data;
    int64_t row, panel; // strides: to the next step of the depth, to the next panel
    const E *at(int64_t first_row, int64_t columns) const {
        return data + first_row / kElements<E> * row + columns / kTileColumns<E> * panel;
    }
};
template <class E, class T> NF_INLINE bool lies_in_panels(int64_t columns) {
    return std::is_same<E, T>::value && columns % kLanes<E> == 0;
}
template <class E> NF_INLINE int64_t panels_size(int64_t rows, int64_t columns) {
    return steps_of<E>(rows) * round_up(columns, kTileColumns<E>);
}
// `copy` holds panels_size operands; it is not used where the matrix lies well.
template <class E, class T>
static Panels<E> as_panels(const T *x, int64_t rows, int64_t columns, int64_t row, E *copy) {
    if constexpr (std::is_same<E, T>::value)
        if (lies_in_panels<E, T>(columns))
            return {x, row, kTileColumns<E>};
    constexpr int64_t NR = kTileColumns<E>;
    const int64_t steps = steps_of<E>(rows);
    for (int64_t j = 0; j < columns; j += NR)
        pack_straight<E, T>(rows, smaller(NR, columns - j), NR, x + j, row, copy + j * steps, NR);
    return {copy, NR, steps * NR};
}

// Rows [0, rows) of x as left operands, in strips of kStripRows rows: depth outermost and times `factor` or, for matrix
// registers, as rows, which take no factor and are at most kMostPairs long.
constexpr int64_t kMostPairs = 512, kPairsStride = kMostPairs + 16; // rows 2 KiB apart would share cache sets
template <class E> using Strip = Packed<E, kPairsStride>;
template <class E> NF_INLINE int64_t strip_size(int64_t depth) {
    return kByMatrices<E> ? kStripRows<E> * kPairsStride : kStripRows<E> * steps_of<E>(depth);
}
template <class E> NF_INLINE int64_t strips_size(int64_t rows, int64_t depth) {
    return ceil_div(rows, kStripRows<E>) * strip_size<E>(depth) + kLanes<E>; // packing writes a little behind the last
}
template <class E, class T>
static void pack_strips(const T *x, int64_t rows, int64_t depth, int64_t row, Acc<E> factor, E *strips) {
    if constexpr (kByMatrices<E>)
        pack_rows<E, T, kPairsStride>(depth, rows, x, row, strips);
    else
        for (int64_t i = 0; i < rows; i += kTileRows, strips += strip_size<E>(depth))
            pack_rows_in_panel<E, T>(depth, smaller(kTileRows, rows - i), x + i * row, row, 1, factor, strips);
}

// The transpose of x (keys x depth) as right operand: panels of kTileColumns keys, depth x kTileColumns each.
template <class E, class T> static void pack_keys(const T *x, int64_t keys, int64_t depth, int64_t row, E *panels) {
    constexpr int64_t NR = kTileColumns<E>;
    for (int64_t j = 0; j < keys; j += NR)
        pack_transposed<E, T>(depth, smaller(NR, keys - j), NR, x + j * row, row, panels + j * steps_of<E>(depth), NR);
}

// Queries of a block, in whole strips: its Q, P and O stay in L2.
template <class E> constexpr int64_t kQueries = kByMatrices<E> ? 4 * kStripRows<E> : kBlockQueries;

// Whether the call's products are of pairs of bfloat16.
template <class T> bool takes_pairs(const Sequences &all) {
    bool fits = kPairs<typename OperandOf<T>::type>;
    for (int64_t s = 0; s < all.count; ++s)
        fits = fits && !all.data[s].relative.r && larger(all.data[s].dim, all.data[s].value_dim) <= 2 * kMostPairs;
    return fits;
}

// 2^x for x <= 0 (or NaN), float's to 2 ulp. Where x, rounded, is below the exponents of normal numbers, the power is
// 0: masked scores are -inf, and an instruction whose result is subnormal takes a microcode assist of some 150 cycles.
template <class A> NF_INLINE Vec<A> exp2_nonpositive(Vec<A> x) {
    constexpr A to_power = kToWhole<A> + kExponentBias<A>;
    const Vec<A> clamped = max(broadcast(A(-kExponentBias<A>)), x); // the order keeps a NaN
    const Vec<A> sum = clamped + to_power, fraction = clamped - (sum - to_power);
    return exp2_fraction_of_score(fraction) * power_in_low_bits<A>(sum);
}

} // namespace nf::NUMFORMER_LEVEL
