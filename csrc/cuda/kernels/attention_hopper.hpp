// Attention's forward for compute capability 9.0, after J. Shah, G. Bikshandi, Y. Zhang, V. Thakkar, P. Ramani and T.
// Dao, "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024. It is attention.hpp's
// scheme with the roles of a block's warps told apart:
//
//   warpgroup 0, one thread of it: brings the queries and then tiles of keys and values by TMA, into a ring of stages
//   warpgroups 1 and 2: 64 queries each; products by wgmma, softmax in registers
//
// A consumer begins S = Q K^T of a tile and O += P V of the tile before, makes the softmax of S while the latter runs,
// and only then waits for it. The two consumers take turns in beginning their products, so that the softmax of one
// falls into the products of the other. docs/internals/cuda_kernels.md has a drawing.
//
// Causal, windows, grouped queries, packed sequences; all else is left to attention.hpp. The scale must be positive:
// the largest score is that of the largest product. Sums are in the order of the keys.
#pragma once
#include "cuda/device_hopper.hpp"
#include "cuda/kernels/attention.hpp"

namespace nf::cuda {

// Shared memory for D = 128: queries 32 KiB, two stages of keys and values of 32 KiB each: 160 of 227 KiB.
// Registers: the 384 threads begin with 168 each, which are 128 * 24 + 256 * 240. A consumer needs D / 2 for the
// output, 64 for scores and 32 for probabilities.
template <int D> struct HopperTile {
    static constexpr int kConsumers = 2, kThreads = (1 + kConsumers) * kGroup;
    static constexpr int kGroupRows = 64, kRows = kConsumers * kGroupRows, kColumns = 128;
    static constexpr int kStages = D <= 64 ? 3 : 2;
    static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
    static constexpr int kQueries = kRows * D, kTile = kColumns * D; // elements
    static constexpr int kBarriers = 1 + 4 * kStages;
};

struct HopperAttentionArgs {
    TensorMap q, k, v;
    AttentionArgs attention;
};

#ifdef NF_HOPPER

// What producer and consumers share.
template <class T, int D> struct HopperShared {
    typedef HopperTile<D> Tile;
    Shared<T> queries, keys, values;
    Shared<uint64_t> barriers;

    NF_DEVICE HopperShared() {
        SharedMemory memory;
        queries = memory.take<T>(Tile::kQueries);
        keys = memory.take<T>(Tile::kStages * Tile::kTile);
        values = memory.take<T>(Tile::kStages * Tile::kTile);
        barriers = memory.take<uint64_t>(Tile::kBarriers);
    }
    NF_DEVICE Shared<uint64_t> queries_came() const { return barriers.from(0); }
    NF_DEVICE Shared<uint64_t> keys_came(int stage) const { return barriers.from(1 + stage); }
    NF_DEVICE Shared<uint64_t> values_came(int stage) const { return barriers.from(1 + Tile::kStages + stage); }
    NF_DEVICE Shared<uint64_t> keys_read(int stage) const { return barriers.from(1 + 2 * Tile::kStages + stage); }
    NF_DEVICE Shared<uint64_t> values_read(int stage) const { return barriers.from(1 + 3 * Tile::kStages + stage); }
    NF_DEVICE Shared<T> keys_of(int stage) const { return keys.from(stage * Tile::kTile); }
    NF_DEVICE Shared<T> values_of(int stage) const { return values.from(stage * Tile::kTile); }
};

// The tiles of keys that a block goes through.
struct HopperTiles {
    int64_t first; // key
    int count;
};

// The bytes were announced.
template <class T, int D>
NF_DEVICE void load_panels(Shared<T> tile, int rows, const TensorMap &from, int64_t row, int64_t head, int64_t batch,
                           Shared<uint64_t> came) {
    NF_UNROLL
    for (int column = 0; column < D; column += kPanel)
        load_tile(tile.from(column * rows), from, column, int(row), int(head), int(batch), came);
}

// One thread brings everything.
template <class T, int D>
NF_DEVICE void bring_tiles(const HopperAttentionArgs &args, const AttentionPlace &place, const HopperTiles &tiles,
                           const HopperShared<T, D> &shared) {
    typedef HopperTile<D> Tile;
    const int64_t kv_head = place.head / (args.attention.heads / args.attention.kv_heads);
    expect_bytes(shared.queries_came(), Tile::kQueries * int(sizeof(T)));
    load_panels<T, D>(shared.queries, Tile::kRows, args.q, place.query_start + place.first, place.head, place.batch,
                      shared.queries_came());
    for (int i = 0; i < tiles.count; ++i) {
        const int stage = i % Tile::kStages, round = i / Tile::kStages;
        const int64_t row = place.key_start + tiles.first + int64_t(i) * Tile::kColumns;
        wait_phase(shared.keys_read(stage), (round + 1) % 2); // at once in the first round
        expect_bytes(shared.keys_came(stage), Tile::kTile * int(sizeof(T)));
        load_panels<T, D>(shared.keys_of(stage), Tile::kColumns, args.k, row, kv_head, place.batch,
                          shared.keys_came(stage));
        wait_phase(shared.values_read(stage), (round + 1) % 2);
        expect_bytes(shared.values_came(stage), Tile::kTile * int(sizeof(T)));
        load_panels<T, D>(shared.values_of(stage), Tile::kColumns, args.v, row, kv_head, place.batch,
                          shared.values_came(stage));
    }
}

// This warp has read a stage.
NF_DEVICE void release(Shared<uint64_t> read) {
    warp_barrier();
    if (lane() == 0)
        arrive_phase(read);
}

// A result becomes a left operand: two of its 8 columns are the fragment of 16.
template <class T, int N> NF_DEVICE void to_operand(const float (&c)[N][4], uint32_t (&a)[N / 2][4]) {
    NF_UNROLL
    for (int i = 0; i < N * 2; ++i) {
        const int n = i / 4 * 2 + i % 4 / 2, e = i % 2 * 2;
        a[i / 4][i % 4] = pack_pair<T>(c[n][e], c[n][e + 1]);
    }
}

// Does this thread find something that is not finite in its part of a tile? A warpgroup looks through all of it.
template <class T> NF_DEVICE bool not_finite(Shared<T> tile, int elements) {
    constexpr int kChunk = 16 / int(sizeof(T));
    bool odd = false;
    for (int at = thread() % kGroup * kChunk; at < elements; at += kGroup * kChunk) {
        const T *chunk = tile.part(at, kChunk);
        NF_UNROLL
        for (int e = 0; e < kChunk; ++e)
            odd = odd || !finite(chunk[e]);
    }
    return odd;
}

// c (16 rows of the warp) += a b, b a tile of 16 DEPTH rows; where a is 0, b is not looked at.
template <class T, int N, int DEPTH>
NF_DEVICE void add_by_hand(float (&c)[N][4], const uint32_t (&a)[DEPTH][4], Shared<T> b) {
    uint32_t weights[DEPTH * 4]; // where they can be indexed
    NF_UNROLL
    for (int i = 0; i < DEPTH * 4; ++i)
        weights[i] = a[i / 4][i % 4];
    NF_NO_UNROLL
    for (int k = 0; k < DEPTH * 16; ++k) {
        const int from = lane() / 4 * 4 + k % 8 / 2, word = k / 16 * 4 + k % 16 / 8 * 2, shift = k % 2 * 16;
        const float w[2] = {widen(T{uint16_t(shuffle(weights[word], from) >> shift)}),
                            widen(T{uint16_t(shuffle(weights[word + 1], from) >> shift)})};
        NF_UNROLL
        for (int n = 0; n < N; ++n)
            NF_UNROLL
        for (int e = 0; e < 4; ++e)
            if (w[e / 2] != 0)
                c[n][e] += w[e / 2] * widen(b[swizzled(k, n * 8 + 2 * (lane() % 4) + e % 2, DEPTH * 16)]);
    }
}

// What a consumer keeps: outputs and statistics of the rows `mine` and `mine` + 8 of each lane, and the probabilities
// of the tile whose values are not yet in the outputs.
template <class T, int D> class HopperConsumer {
    typedef HopperTile<D> Tile;
    static constexpr int kColumns = Tile::kColumns, kScores = kColumns / 8, kDepth = kColumns / 16;

  public:
    NF_DEVICE HopperConsumer(const AttentionArgs &args, const AttentionPlace &place, const HopperTiles &tiles,
                             const HopperShared<T, D> &shared)
        : args_(args), place_(place), tiles_(tiles), shared_(shared), group_(thread() / kGroup - 1),
          row0_(place.first + group_ * Tile::kGroupRows), mine_(row0_ + warp() % 4 * 16 + lane() / 4),
          exponent_(float(args.scale * kLog2e)) {}

    NF_DEVICE void run() {
        wait_phase(shared_.queries_came(), 0);
        if (tiles_.count > 0) {
            if (group_ == 1)
                pass_turn(); // the other one begins
            float s[kScores][4], factor[2];
            wait_phase(shared_.keys_came(0), 0);
            wait_turn();
            begin_scores(s, 0);
            end_turn(0);
            wait_products<0>();
            pin(s);
            release(shared_.keys_read(0));
            to_probabilities(s, 0, factor); // nothing is summed yet: the factors are 0
            to_operand<T>(s, p_);
            for (int i = 1; i < tiles_.count; ++i) {
                const int stage = i % Tile::kStages, before = (i - 1) % Tile::kStages;
                wait_phase(shared_.keys_came(stage), i / Tile::kStages % 2);
                wait_phase(shared_.values_came(before), (i - 1) / Tile::kStages % 2);
                if (must_look(i - 1)) {
                    add_by_hand(o_, p_, shared_.values_of(before));
                    wait_turn();
                    begin_scores(s, stage);
                    end_turn(i);
                    wait_products<0>();
                    pin(s);
                    release(shared_.keys_read(stage));
                    to_probabilities(s, i, factor);
                } else {
                    wait_turn();
                    begin_scores(s, stage);
                    begin_values(before);
                    end_turn(i);
                    wait_products<1>();
                    pin(s);
                    release(shared_.keys_read(stage));
                    to_probabilities(s, i, factor);
                    wait_products<0>();
                    pin(o_);
                }
                release(shared_.values_read(before));
                NF_UNROLL
                for (int n = 0; n < D / 8; ++n)
                    NF_UNROLL
                for (int e = 0; e < 4; ++e)
                    o_[n][e] *= factor[e / 2];
                to_operand<T>(s, p_);
            }
            const int last = (tiles_.count - 1) % Tile::kStages;
            wait_phase(shared_.values_came(last), (tiles_.count - 1) / Tile::kStages % 2);
            if (must_look(tiles_.count - 1)) {
                add_by_hand(o_, p_, shared_.values_of(last));
            } else {
                begin_values(last);
                wait_products<0>();
                pin(o_);
            }
        }
        write();
    }

  private:
    // ---- turns: barrier 1 + group opens when the other group has begun its products

    NF_DEVICE void wait_turn() const { group_barrier(1 + group_, 2 * kGroup); }
    NF_DEVICE void pass_turn() const { group_arrive(2 - group_, 2 * kGroup); }
    NF_DEVICE void end_turn(int i) const {
        if (group_ == 0 || i + 1 < tiles_.count) // group 0 waits once less for group 1, which began by passing
            pass_turn();
    }

    // ---- products

    NF_DEVICE void begin_scores(float (&s)[kScores][4], int stage) const {
        const Shared<T> keys = shared_.keys_of(stage);
        pin(s);
        begin_products();
        NF_UNROLL
        for (int k = 0; k < D; k += 16)
            multiply_shared<false, false>(s,
                                          columns_of_tile(shared_.queries, Tile::kRows, group_ * Tile::kGroupRows, k),
                                          columns_of_tile(keys, kColumns, 0, k), k > 0, T());
        end_products();
        pin(s);
    }
    NF_DEVICE void begin_values(int stage) {
        const Shared<T> values = shared_.values_of(stage);
        pin(o_);
        begin_products();
        NF_UNROLL
        for (int k = 0; k < kDepth; ++k)
            multiply_registers<true>(o_, p_[k], rows_of_tile(values, kColumns, 16 * k), true, T());
        end_products();
        pin(o_);
    }

    // What has weight 0 must not be looked at where it may be masked: 0 times infinity is NaN. So the values of a tile
    // with masked pairs are looked through, and where one is not finite, wgmma does not get them.
    NF_DEVICE bool must_look(int i) const {
        if (all_seen(i))
            return false;
        return group_any(3 + group_, kGroup, not_finite(shared_.values_of(i % Tile::kStages), Tile::kTile));
    }

    // ---- softmax

    // Do all rows of the group see all keys of tile i?
    NF_DEVICE bool all_seen(int i) const {
        const int64_t key0 = key_of(i);
        return key0 + kColumns <= place_.keys && key0 >= place_.low + row0_ + Tile::kGroupRows - 1 &&
               key0 + kColumns - 1 <= place_.high + row0_;
    }
    NF_DEVICE int64_t key_of(int i) const { return tiles_.first + int64_t(i) * kColumns; }

    // From the products of tile i to probabilities, up to the row's sum, and what earlier ones are to be multiplied by.
    NF_DEVICE void to_probabilities(float (&s)[kScores][4], int i, float (&factor)[2]) {
        if (!all_seen(i)) {
            int first[2], last[2]; // columns of the tile
            NF_UNROLL
            for (int r = 0; r < 2; ++r) {
                const int64_t query = mine_ + 8 * r, key0 = key_of(i);
                first[r] = int(smaller_of(int64_t(kColumns), larger_of(int64_t(0), place_.low + query - key0)));
                last[r] = int(larger_of(int64_t(-1), smaller_of(place_.high + query, place_.keys - 1) - key0));
            }
            NF_UNROLL
            for (int n = 0; n < kScores; ++n)
                NF_UNROLL
            for (int e = 0; e < 4; ++e) {
                const int column = n * 8 + 2 * (lane() % 4) + e % 2;
                if (column < first[e / 2] || column > last[e / 2])
                    s[n][e] = -infinity<float>();
            }
        }
        float highest[2] = {top_[0], top_[1]}, shift[2];
        NF_UNROLL
        for (int n = 0; n < kScores; ++n)
            NF_UNROLL
        for (int e = 0; e < 4; ++e)
            highest[e / 2] = larger_of(highest[e / 2], s[n][e]);
        NF_UNROLL
        for (int r = 0; r < 2; ++r) {
            highest[r] = larger_of(highest[r], shuffle_xor(highest[r], 1)); // the four lanes of a row
            highest[r] = larger_of(highest[r], shuffle_xor(highest[r], 2));
            shift[r] = highest[r] == -infinity<float>() ? 0.0f : highest[r] * exponent_; // nothing seen yet: 0
            factor[r] = fast_exp2(fmaf(top_[r], exponent_, -shift[r]));
            top_[r] = highest[r];
            sum_[r] *= factor[r];
        }
        NF_UNROLL
        for (int n = 0; n < kScores; ++n)
            NF_UNROLL
        for (int e = 0; e < 4; ++e) {
            s[n][e] = fast_exp2(fmaf(s[n][e], exponent_, -shift[e / 2]));
            sum_[e / 2] += s[n][e];
        }
    }
    // ---- the end

    NF_DEVICE void write() {
        NF_UNROLL
        for (int r = 0; r < 2; ++r) {
            sum_[r] += shuffle_xor(sum_[r], 1);
            sum_[r] += shuffle_xor(sum_[r], 2);
            const int64_t query = mine_ + 8 * r;
            if (query >= place_.queries)
                continue;
            const float inverse = sum_[r] == 0 ? 0.0f : 1.0f / sum_[r]; // nothing to attend to: zeros
            const int64_t row = place_.query_start + query;
            store_row(rows_of<T>(args_, args_.out, place_.batch, place_.head, row), o_, r, int(args_.value_dim),
                      inverse);
            if (lane() % 4 == 0 && args_.lse)
                static_cast<float *>(args_.lse)[(place_.batch * args_.heads + place_.head) * args_.queries + row] =
                    sum_[r] == 0 ? -infinity<float>() : top_[r] * float(args_.scale) + log_of(sum_[r]);
        }
    }

    const AttentionArgs &args_;
    const AttentionPlace &place_;
    const HopperTiles &tiles_;
    const HopperShared<T, D> &shared_;
    const int group_;
    const int64_t row0_, mine_;
    const float exponent_; // exp(scale x) = 2^(exponent x)
    float o_[D / 8][4] = {}, top_[2] = {-infinity<float>(), -infinity<float>()}, sum_[2] = {};
    uint32_t p_[kDepth][4];
};

#endif

// D: 64 or 128, at least dim and value_dim.
template <class T, int D> NF_KERNEL_ALONE(HopperTile<D>::kThreads) attention_hopper(NF_ARGS HopperAttentionArgs args) {
#ifdef NF_HOPPER
    typedef HopperTile<D> Tile;
    AttentionPlace place;
    if (!find_place(args.attention, false, Tile::kRows, place))
        return;
    const int64_t rows = smaller_of(int64_t(Tile::kRows), place.queries - place.first);
    const KeyRange range = keys_of(args.attention, place, place.first, rows);
    const int64_t first = range.first / Tile::kColumns * Tile::kColumns;
    const HopperTiles tiles{first, int(larger_of(int64_t(0), ceil_div(range.last - first, Tile::kColumns)))};
    const HopperShared<T, D> shared;
    if (thread() == 0) {
        init_phases(shared.queries_came(), 1);
        for (int stage = 0; stage < Tile::kStages; ++stage) {
            init_phases(shared.keys_came(stage), 1);
            init_phases(shared.values_came(stage), 1);
            init_phases(shared.keys_read(stage), Tile::kConsumers * kGroup / kWarp); // a lane of each warp arrives
            init_phases(shared.values_read(stage), Tile::kConsumers * kGroup / kWarp);
        }
        publish_phases();
    }
    barrier();
    if (thread() < kGroup) {
        give_registers<Tile::kProducerRegisters>();
        if (thread() == 0)
            bring_tiles<T, D>(args, place, tiles, shared);
    } else {
        take_registers<Tile::kConsumerRegisters>();
        HopperConsumer<T, D>(args.attention, place, tiles, shared).run();
    }
#endif
}

} // namespace nf::cuda
