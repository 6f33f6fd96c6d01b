// Attention's forward on tensor cores, after T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and
// Work Partitioning", 2023: a block has 16 queries a warp and goes through the keys in tiles, with the online softmax
// of M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018. Scores, probabilities and outputs
// stay in the registers of the warp that owns their rows, in the layout of the product's fragments (device.hpp).
//
// float32 and float64 go the same way, with plain multiply-adds in place of the fragment product. Sums over keys are in
// the order of the keys, and tiles begin at multiples of their width, so the bits of a row depend on nothing but its
// sequence.
//
// Here is what the kernels forward and backward share.
#pragma once
#include "cuda/kernels/elementwise.hpp"

#include <type_traits>

namespace nf::cuda {

constexpr int kMostLeading = 4;
constexpr int64_t kNoLimit = int64_t(1) << 40; // beyond any number of keys, and sums of two do not overflow

// One operand: rows of unit stride.
struct AttentionOperand {
    void *data;
    int64_t batch[kMostLeading], head, row; // strides; `batch`: of the leading axes
};
// Something for each pair of a query and a key, broadcast by strides of 0. Null data: there is none.
struct AttentionPairs {
    const void *data;
    int64_t batch[kMostLeading], head, query, key;
    bool is_float; // a float beside 16 bits
};
// One number a head.
struct AttentionPerHead {
    const void *data;
    bool is_float;
};

// Transformer-XL's relative positions (Dai et al., 2019, section 3.3): the product of query i and key j becomes
// (q_i + u) . k_j + (q_i + v) . r_x, x = origin + diagonal + i - j. Null r: there are none.
struct AttentionRelative {
    AttentionOperand r;    // (heads, length, dim)
    AttentionPerHead u, v; // (heads, dim)
    int64_t length, origin;
    void *of_keys, *of_rows;   // scratch: u . k (batches, heads, keys), v . r (heads, length)
    void *dr;                  // (heads, length, dim); null: gradients are not wanted
    void *sum_keys, *sum_rows; // scratch: dS summed over the pairs of a key, of a row of r; like of_keys, of_rows
};

struct AttentionArgs {
    int64_t batches, heads, kv_heads, queries, keys, dim, value_dim;
    int leading_axes;
    int64_t leading[kMostLeading];
    AttentionOperand q, k, v, out, dout, dq, dk, dv; // the last four: backward only
    void *lse;                                       // float or double: (batches, heads, queries)
    const void *dlse;                                // like lse, or null
    void *delta;                                     // scratch, like lse: rowsum(dout out) - dlse
    AttentionPairs mask, bias;
    AttentionPairs dbias; // the gradient of the bias, in C order: its strides are 0 where bias is broadcast
    int64_t bias_queries, bias_keys, bias_slices; // its shape: slices of rows (queries or 1) of columns (keys or 1)
    // Self-attention with global tokens (of one byte each): they see, and are seen by, all keys that causality leaves.
    // Without global_rows they see nothing.
    AttentionOperand global;
    bool global_rows;
    AttentionPerHead slopes, sinks;
    AttentionRelative relative;
    void *dsinks; // of the type of sinks
    bool causal, top_left;
    int64_t left, right;   // the window; kNoLimit: none on that side
    double scale, softcap; // softcap 0: none
    bool tf32;             // float32 may be rounded to TF32 in products
    Dropout dropout;
    // Packed sequences: sequence s has the rows [starts[s], starts[s + 1]) of q and of k. Then `batches` is 1.
    const void *query_starts, *key_starts;
    bool wide_query_starts, wide_key_starts; // int64
    int64_t sequences;
};

// What fits the 163 KiB of shared memory of a block: rows (of queries forward, of the gradient's side backward) as two
// matrices, and two tiles of kColumns rows.
template <class T, int D> struct AttentionTile {
    static constexpr int kWarps = sizeof(T) == 8 ? 2 : 4, kThreads = kWarps * kWarp, kRows = 16 * kWarps;
    static constexpr int kMost = sizeof(T) == 2 ? 64 : sizeof(T) == 4 ? 64 : 32, kWidth = sizeof(T) == 2 ? 128 : 64;
    static constexpr int kColumns = D <= kWidth ? kMost : kMost * kWidth / D;
    static constexpr int kStride = D + 16 / int(sizeof(T)); // rows of a column lie in different banks
};

template <class T> NF_DEVICE Acc<T> at_head(const AttentionPerHead &values, int64_t head) {
    if constexpr (sizeof(T) == 2)
        if (values.is_float)
            return load(static_cast<const float *>(values.data), head);
    return load(static_cast<const T *>(values.data), head);
}

NF_DEVICE int64_t start_at(const void *starts, bool wide, int64_t i) {
    return wide ? static_cast<const int64_t *>(starts)[i] : int64_t(static_cast<const int32_t *>(starts)[i]);
}

// Which sequence, head and rows a block works on.
struct AttentionPlace {
    int64_t batch, head, sequence, first; // the sequence is that of dropout; `first`: row of the block in the sequence
    int64_t query_start, key_start, queries, keys;
    int chunk;                   // of the columns of the output
    int64_t low, high, diagonal; // query i may see keys [low + i, high + i]
    int64_t causal_high;         // ... and global keys up to causal_high + i
};

// Which keys a query may see, once the sequence's lengths are known.
NF_DEVICE void set_pattern(const AttentionArgs &args, AttentionPlace &place) {
    place.diagonal = args.top_left ? 0 : place.keys - place.queries;
    place.causal_high = args.causal ? place.diagonal : kNoLimit;
    place.low = args.left == kNoLimit ? -kNoLimit : place.diagonal - args.left;
    place.high = smaller_of(place.causal_high, args.right == kNoLimit ? kNoLimit : place.diagonal + args.right);
}

// Heads that are wider than what a block holds at once go in chunks: which kernels are for such heads, too?
constexpr int kMostColumns = 256;
template <int D, bool kRelative> constexpr bool kInChunks = D == kMostColumns || kRelative;

// How many chunks of `most` columns a head's width has.
constexpr NF_HOST_DEVICE int chunks_of(int64_t width, int most) {
    return width > most ? int(ceil_div(width, most)) : 1;
}

// Blocks of `rows` queries (of keys, if by_keys) and one of `chunks` chunks of columns for each of `heads` heads.
// False: this block has nothing to do.
NF_DEVICE bool find_place(const AttentionArgs &args, bool by_keys, int rows, AttentionPlace &place, int chunks = 1) {
    place.chunk = int(block() % chunks);
    const int64_t number = block() / chunks;
    const int64_t heads = by_keys ? args.kv_heads : args.heads, total = by_keys ? args.keys : args.queries;
    int64_t index;
    if (!args.query_starts) {
        const int64_t each = ceil_div(total, rows);
        index = number % each;
        if (args.causal && !by_keys)
            index = each - 1 - index; // the last queries see most keys: begun first, they do not end last
        place.head = number / each % heads;
        place.batch = place.sequence = number / each / heads;
        place.query_start = place.key_start = 0;
        place.queries = args.queries;
        place.keys = args.keys;
    } else {
        // Lengths are on the device only: there are as many blocks as any division of the rows may need.
        const int64_t each = ceil_div(total, rows) + args.sequences;
        index = number % each;
        place.head = number / each;
        place.batch = 0;
        for (place.sequence = 0; place.sequence < args.sequences; ++place.sequence) {
            place.query_start = start_at(args.query_starts, args.wide_query_starts, place.sequence);
            place.key_start = start_at(args.key_starts, args.wide_key_starts, place.sequence);
            place.queries = start_at(args.query_starts, args.wide_query_starts, place.sequence + 1) - place.query_start;
            place.keys = start_at(args.key_starts, args.wide_key_starts, place.sequence + 1) - place.key_start;
            const int64_t needed = ceil_div(by_keys ? place.keys : place.queries, rows);
            if (index < needed)
                break;
            index -= needed;
        }
        if (place.sequence == args.sequences)
            return false;
    }
    place.first = index * rows;
    set_pattern(args, place);
    return true;
}

// For blocks that go through all sequences, of one length: all but head and sequence.
NF_DEVICE AttentionPlace whole_place(const AttentionArgs &args) {
    AttentionPlace place{};
    place.queries = args.queries;
    place.keys = args.keys;
    set_pattern(args, place);
    return place;
}

NF_DEVICE int64_t batch_offset(const AttentionArgs &args, const int64_t *strides, int64_t batch) {
    int64_t offset = 0;
    for (int axis = args.leading_axes - 1; axis >= 0; --axis) {
        offset += batch % args.leading[axis] * strides[axis];
        batch /= args.leading[axis];
    }
    return offset;
}
template <class T>
NF_DEVICE T *rows_of(const AttentionArgs &args, const AttentionOperand &x, int64_t batch, int64_t head, int64_t start) {
    return static_cast<T *>(x.data) + batch_offset(args, x.batch, batch) + head * x.head + start * x.row;
}

// Rows [begin, count) of x, `width` columns of them, into a tile of ROWS rows; zeros beside, up to a multiple of 16
// columns. 16 bytes at a time where they lie so. Returns whether this thread saw something that is not finite.
template <class T, int ROWS>
NF_DEVICE bool copy_tile(Shared<T> tile, int stride, const T *x, int64_t row, int64_t count, int width,
                         int64_t begin = 0) {
    constexpr int kChunk = 16 / int(sizeof(T));
    struct alignas(16) Chunk {
        T x[kChunk];
    };
    const int chunks = (width + 15) / 16 * 16 / kChunk; // of a row
    const bool aligned = width % kChunk == 0 && row % kChunk == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    bool odd = false;
    for (int i = thread(); i < ROWS * chunks; i += threads()) {
        const int r = i / chunks, c = i % chunks * kChunk;
        Chunk chunk{};
        if (r >= begin && r < count && c < width) {
            if (aligned) {
                chunk = *reinterpret_cast<const Chunk *>(x + r * row + c);
            } else {
                NF_UNROLL
                for (int e = 0; e < kChunk; ++e)
                    if (c + e < width)
                        chunk.x[e] = x[r * row + c + e];
            }
        }
        NF_UNROLL
        for (int e = 0; e < kChunk; ++e)
            odd = odd || !finite(chunk.x[e]);
        *reinterpret_cast<Chunk *>(tile.part(r * stride + c, kChunk)) = chunk;
    }
    return odd;
}

// Rows of an operand in shared memory, D of their columns at a time: all of them, unless heads are wider.
template <class T, int D, int ROWS> class Strip {
  public:
    static constexpr int kStride = AttentionTile<T, D>::kStride;
    Shared<T> tile;
    NF_DEVICE Strip(SharedMemory &memory, int64_t width)
        : tile(memory.template take<T>(ROWS * kStride)), width_(int(width)) {}

    // The rows are [begin, end) of x from now on, with zeros beside; none is held yet.
    NF_DEVICE void point(const T *x, int64_t row, int64_t end, int64_t begin = 0) {
        x_ = x;
        row_ = row;
        begin_ = begin;
        end_ = end;
        held_ = -1;
    }
    NF_DEVICE int width() const { return width_; }
    NF_DEVICE int columns(int first) const { return width_ - first < D ? width_ - first : D; }
    NF_DEVICE bool holds(int first) const { return held_ == first; }
    // Copies columns [first, first + D), unless they are there. All threads of the block ask, between barriers.
    NF_DEVICE void hold(int first) {
        if (held_ == first)
            return;
        odd_ = copy_tile<T, ROWS>(tile, kStride, x_ + first, row_, end_, columns(first), begin_);
        held_ = first;
    }
    NF_DEVICE bool odd() const { return odd_; } // did this thread copy something that is not finite?
    // Makes the block hold these columns: are all of them finite, or is nobody of `alert` asking?
    NF_DEVICE bool bring(int first, bool alert) {
        if (held_ != first) {
            barrier();
            hold(first);
        }
        return barrier_any(odd_ && alert);
    }

  private:
    const T *x_ = nullptr;
    int64_t row_ = 0, begin_ = 0, end_ = 0;
    int width_, held_ = -1;
    bool odd_ = false;
};

// c (16 x 8 COLUMNS) += a (16 x depth) b^T, b with 8 COLUMNS rows; both in shared memory, the warp's rows from `a` on.
template <class T, int COLUMNS>
NF_DEVICE void multiply_rows(Acc<T> (&c)[COLUMNS][4], Shared<T> a, Shared<T> b, int stride, int depth, bool tf32) {
    if constexpr (sizeof(T) == 2) {
        NF_NO_UNROLL
        for (int k = 0; k < depth; k += 16) {
            uint32_t x[4], y[4];
            load_matrices<false>(a.from(lane() % 16 * stride + k + lane() / 16 * 8), x);
            NF_UNROLL
            for (int n = 0; n < COLUMNS; n += 2) {
                load_matrices<false>(b.from((n * 8 + lane() % 8 + lane() / 16 * 8) * stride + k + lane() / 8 % 2 * 8),
                                     y);
                multiply_add(c[n], x, y, T());
                multiply_add(c[n + 1], x, y + 2, T());
            }
        }
    } else {
        const int g = lane() / 4, t = lane() % 4;
        if constexpr (std::is_same<T, float>::value) {
            if (tf32) {
                NF_NO_UNROLL
                for (int k = 0; k < depth; k += 8) {
                    const float x[4] = {a[g * stride + k + t], a[(g + 8) * stride + k + t], a[g * stride + k + t + 4],
                                        a[(g + 8) * stride + k + t + 4]};
                    NF_UNROLL
                    for (int n = 0; n < COLUMNS; ++n) {
                        const float y[2] = {b[(n * 8 + g) * stride + k + t], b[(n * 8 + g) * stride + k + t + 4]};
                        multiply_add_tf32(c[n], x, y);
                    }
                }
                return;
            }
        }
        NF_NO_UNROLL
        for (int k = 0; k < depth; ++k) {
            const T a0 = a[g * stride + k], a1 = a[(g + 8) * stride + k];
            NF_UNROLL
            for (int n = 0; n < COLUMNS; ++n) {
                NF_UNROLL
                for (int e = 0; e < 2; ++e) {
                    const T b0 = b[(n * 8 + 2 * t + e) * stride + k];
                    c[n][e] += a0 * b0;
                    c[n][2 + e] += a1 * b0;
                }
            }
        }
    }
}

// c (16 x width) += w (16 x 8 DEPTH, in fragments) b (8 DEPTH x width, in shared memory). `careful`: where w is 0, b is
// not looked at (0 times infinity is NaN).
template <class T, int DEPTH, int COLUMNS>
NF_DEVICE void multiply_weights(Acc<T> (&c)[COLUMNS][4], const Acc<T> (&w)[DEPTH][4], Shared<T> b, int stride,
                                int width, bool careful, bool tf32) {
    if constexpr (sizeof(T) == 2) {
        if (!careful) {
            NF_UNROLL
            for (int k = 0; k < DEPTH; k += 2) {
                // What is two tiles of a result is the fragment of a left operand.
                const uint32_t x[4] = {pack_pair<T>(w[k][0], w[k][1]), pack_pair<T>(w[k][2], w[k][3]),
                                       pack_pair<T>(w[k + 1][0], w[k + 1][1]), pack_pair<T>(w[k + 1][2], w[k + 1][3])};
                NF_UNROLL
                for (int n = 0; n < COLUMNS; n += 2)
                    if (n * 8 < width) {
                        uint32_t y[4];
                        load_matrices<true>(b.from((k * 8 + lane() % 16) * stride + n * 8 + lane() / 16 * 8), y);
                        multiply_add(c[n], x, y, T());
                        multiply_add(c[n + 1], x, y + 2, T());
                    }
            }
            return;
        }
    }
    if constexpr (std::is_same<T, float>::value) {
        if (tf32 && !careful) {
            const int g = lane() / 4, column = lane() % 4 * 2;
            NF_UNROLL
            for (int k = 0; k < DEPTH; ++k) {
                // The order of the depth is free: a lane's columns 2t and 2t + 1 are taken for t and t + 4, here and in
                // b.
                const float x[4] = {w[k][0], w[k][2], w[k][1], w[k][3]};
                NF_UNROLL
                for (int n = 0; n < COLUMNS; ++n)
                    if (n * 8 < width) {
                        const float y[2] = {b[(k * 8 + column) * stride + n * 8 + g],
                                            b[(k * 8 + column + 1) * stride + n * 8 + g]};
                        multiply_add_tf32(c[n], x, y);
                    }
            }
            return;
        }
    }
    // Not unrolled, so that this is small: the weights go where they can be indexed.
    typedef Acc<T> A;
    A weights[DEPTH * 4];
    NF_UNROLL
    for (int i = 0; i < DEPTH * 4; ++i)
        weights[i] = w[i / 4][i % 4];
    const int t = lane() % 4;
    NF_NO_UNROLL
    for (int k = 0; k < DEPTH * 8; ++k) {
        const int from = lane() / 4 * 4 + k % 8 / 2; // who has column k of the rows
        const A w0 = shuffle(weights[k / 8 * 4 + k % 2], from), w1 = shuffle(weights[k / 8 * 4 + 2 + k % 2], from);
        NF_UNROLL
        for (int n = 0; n < COLUMNS; ++n)
            if (n * 8 < width) {
                NF_UNROLL
                for (int i = 0; i < 2; ++i) {
                    const A value = widen(b[k * stride + n * 8 + 2 * t + i]);
                    if (!careful || w0 != 0)
                        c[n][i] += w0 * value;
                    if (!careful || w1 != 0)
                        c[n][2 + i] += w1 * value;
                }
            }
    }
}

// f(n, e, x[n][e]) changes each in a loop that is not unrolled, for what is long and not always needed.
template <class A, int N, class F> NF_DEVICE void change_each(A (&x)[N][4], F f) {
    A all[N * 4];
    NF_UNROLL
    for (int i = 0; i < N * 4; ++i)
        all[i] = x[i / 4][i % 4];
    NF_NO_UNROLL
    for (int i = 0; i < N * 4; ++i)
        f(i / 4, i % 4, all[i]);
    NF_UNROLL
    for (int i = 0; i < N * 4; ++i)
        x[i / 4][i % 4] = all[i];
}
// ... f(n, e, x[n][e], y[n][e]) both.
template <class A, int N, class F> NF_DEVICE void change_each(A (&x)[N][4], A (&y)[N][4], F f) {
    A all[N * 8];
    NF_UNROLL
    for (int i = 0; i < N * 4; ++i) {
        all[2 * i] = x[i / 4][i % 4];
        all[2 * i + 1] = y[i / 4][i % 4];
    }
    NF_NO_UNROLL
    for (int i = 0; i < N * 4; ++i)
        f(i / 4, i % 4, all[2 * i], all[2 * i + 1]);
    NF_UNROLL
    for (int i = 0; i < N * 4; ++i) {
        x[i / 4][i % 4] = all[2 * i];
        y[i / 4][i % 4] = all[2 * i + 1];
    }
}

// Of a tile of pairs.
enum class Seen : int { nothing, some, all };

// What happens to the product of a query and a key: scale, softcap, bias, ALiBi, masks; dropout afterwards.
template <class T> class Scores {
  public:
    typedef Acc<T> A;
    NF_DEVICE Scores(const AttentionArgs &args, const AttentionPlace &place, int64_t head)
        : args_(args), place_(place), head_(head) {
        if (args.mask.data)
            mask_ = static_cast<const uint8_t *>(args.mask.data) + batch_offset(args, args.mask.batch, place.batch) +
                    head * args.mask.head;
        if (args.bias.data)
            bias_ = batch_offset(args, args.bias.batch, place.batch) + head * args.bias.head;
        if (args.global.data)
            global_ = rows_of<const uint8_t>(args, args.global, place.batch, 0, 0);
        slope_ = args.slopes.data ? at_head<T>(args.slopes, head) : A(0);
        if (args.relative.r.data) {
            of_keys_ = static_cast<const A *>(args.relative.of_keys) + (place.batch * args.heads + head) * args.keys;
            of_rows_ = static_cast<const A *>(args.relative.of_rows) + head * args.relative.length +
                       args.relative.origin + place.diagonal;
        }
    }

    // What the queries of a tile see of its keys. All threads of the block ask: they look at mask and global tokens
    // together. A bias may hide any pair.
    NF_DEVICE Seen look(int64_t query, int64_t queries, int64_t key, int64_t keys) const {
        const int64_t query_end = smaller_of(query + queries, place_.queries),
                      key_end = smaller_of(key + keys, place_.keys);
        bool any = key <= place_.high + query_end - 1 && key_end - 1 >= place_.low + query;
        bool all = !args_.bias.data && query_end == query + queries && key_end == key + keys &&
                   key >= place_.low + query_end - 1 && key_end - 1 <= place_.high + query;
        bool hidden = false;
        if (global_) {
            bool global = false;
            for (int64_t i = query + thread(); i < query_end; i += threads())
                if (is_global(i))
                    (args_.global_rows ? global : hidden) = true;
            for (int64_t j = key + thread(); j < key_end; j += threads())
                global = global || is_global(j);
            any = barrier_any(global) || any;
        }
        if (mask_ && any) {
            const int64_t rows = args_.mask.query == 0 ? 1 : query_end - query,
                          columns = args_.mask.key == 0 ? 1 : key_end - key;
            bool seen = false;
            for (int64_t i = thread(); i < rows * columns; i += threads()) {
                const bool see = mask_[(query + i / columns) * args_.mask.query + (key + i % columns) * args_.mask.key];
                seen = seen || see;
                hidden = hidden || !see;
            }
            any = barrier_any(seen);
        }
        if (!any)
            return Seen::nothing;
        if (all && (mask_ || global_))
            all = !barrier_any(hidden);
        return all ? Seen::all : Seen::some;
    }

    // Is a score that is seen its product times scale?
    NF_DEVICE bool plain() const { return args_.softcap == 0 && !args_.slopes.data && !of_keys_; }
    NF_DEVICE A scale() const { return A(args_.scale); }

    // The score of a product; false where the query may not look. cap_slope: the derivative of the softcap.
    NF_DEVICE bool score(int64_t query, int64_t key, bool sees, A &s, A &cap_slope) const {
        A bias = A(0);
        if (!sees) {
            if (query >= place_.queries || key >= place_.keys || !in_pattern(query, key))
                return false;
            if (mask_ && !mask_[query * args_.mask.query + key * args_.mask.key])
                return false;
            if (args_.bias.data) {
                bias = bias_at(bias_ + query * args_.bias.query + key * args_.bias.key);
                if (bias == -infinity<A>())
                    return false;
            }
        }
        if (of_keys_)
            s += of_keys_[key] + of_rows_[query - key];
        s *= A(args_.scale);
        cap_slope = A(1);
        if (args_.softcap != 0) {
            const A t = tanh_of(s / A(args_.softcap));
            s = A(args_.softcap) * t;
            cap_slope = A(1) - t * t;
        }
        s += bias;
        if (args_.slopes.data) {
            const int64_t distance = key - query - place_.diagonal;
            s -= slope_ * A(distance < 0 ? -distance : distance);
        }
        return true;
    }

    NF_DEVICE bool drops() const { return args_.dropout.limit != 0; }
    NF_DEVICE A kept(int64_t query, int64_t key) const {
        const int64_t element = (head_ * place_.queries + query) * place_.keys + key;
        const uint32_t sample = args_.dropout.sample + uint32_t(place_.sequence);
        return args_.dropout.keeps(sample, element) ? A(args_.dropout.factor) : A(0);
    }

  private:
    NF_DEVICE bool is_global(int64_t i) const { return global_[i * args_.global.row] != 0; }
    NF_DEVICE bool in_pattern(int64_t query, int64_t key) const {
        const bool inside = key >= place_.low + query && key <= place_.high + query;
        if (!global_)
            return inside;
        const bool causal = key <= place_.causal_high + query;
        return is_global(query) ? args_.global_rows && causal : inside || (causal && is_global(key));
    }
    NF_DEVICE A bias_at(int64_t i) const {
        if constexpr (sizeof(T) == 2)
            if (args_.bias.is_float)
                return load(static_cast<const float *>(args_.bias.data), i);
        return load(static_cast<const T *>(args_.bias.data), i);
    }

    const AttentionArgs &args_;
    const AttentionPlace &place_;
    int64_t head_, bias_ = 0;
    const uint8_t *mask_ = nullptr, *global_ = nullptr;
    const A *of_keys_ = nullptr, *of_rows_ = nullptr; // of relative positions: of_rows_[i - j]
    A slope_;
};

// The keys that one of the queries [first, first + rows) may see, and the queries that may see one of the keys.
struct KeyRange {
    int64_t first, last;
};
NF_DEVICE KeyRange keys_of(const AttentionArgs &args, const AttentionPlace &place, int64_t first, int64_t rows) {
    if (args.global.data)
        return {0, smaller_of(place.keys, place.causal_high + first + rows)};
    return {larger_of(int64_t(0), place.low + first), smaller_of(place.keys, place.high + first + rows)};
}
NF_DEVICE KeyRange queries_of(const AttentionArgs &args, const AttentionPlace &place, int64_t first, int64_t rows) {
    if (args.global.data)
        return {larger_of(int64_t(0), first - place.causal_high), place.queries};
    return {larger_of(int64_t(0), first - place.high), smaller_of(place.queries, first + rows - place.low)};
}

template <class A> NF_DEVICE A exp_of_difference(A s, A shift) { return exp2_of((s - shift) * A(kLog2e)); }

// Write a row of an output, its first `columns` columns, of which this lane holds those of row r of its fragments.
template <class T, int N> NF_DEVICE void store_row(T *to, const Acc<T> (&x)[N][4], int r, int columns, Acc<T> factor) {
    NF_UNROLL
    for (int i = 0; i < 2 * N; ++i) {
        const int n = i / 2, column = n * 8 + 2 * (lane() % 4) + i % 2;
        if (column < columns)
            store(to, column, x[n][2 * r + i % 2] * factor);
    }
}

} // namespace nf::cuda
