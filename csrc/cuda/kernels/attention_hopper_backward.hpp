// Attention's backward for compute capability 9.0: the two kernels of attention_backward.hpp, which has the formulas,
// by wgmma and TMA. Nothing is added atomically: one kernel has blocks of queries and makes dq, one has blocks of keys
// and makes dk and dv.
//
// Both are one text. A block keeps 128 rows of two matrices X and X' in shared memory and goes through tiles of two
// others, Y and Y', which one warp brings:
//
//                   X   X'   Y   Y'   S = X Y^T, dP = X' Y'^T;  then, from registers,
//   by queries      Q   dO   K   V    dQ += dS K
//   by keys         K   V    Q   dO   dK += dS^T Q, dV += P^T dO      (S, P, dP and dS are transposed)
//
// Each of two warpgroups has 64 rows. P is made while dP is still being multiplied.
#pragma once
#include "cuda/kernels/attention_backward.hpp"
#include "cuda/kernels/attention_hopper.hpp"

namespace nf::cuda {

// Shared memory for D = 128: X and X' 32 KiB each, three stages of Y and Y' of 16 KiB each: 160 of 227 KiB.
// Registers of a consumer by keys: D for dk and dv, 64 for S and dP, 32 for both as operands: 224.
template <int D> struct HopperBackwardTile {
    static constexpr int kConsumers = 2, kThreads = (1 + kConsumers) * kGroup;
    static constexpr int kGroupRows = 64, kRows = kConsumers * kGroupRows, kColumns = 64;
    static constexpr int kStages = 3;
    static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
    static constexpr int kBlock = kRows * D, kTile = kColumns * D; // elements
};

struct HopperBackwardArgs {
    TensorMap x, x2, y, y2;
    AttentionArgs attention;
};

#ifdef NF_HOPPER

template <class T, int D> struct HopperBackwardShared {
    typedef HopperBackwardTile<D> Tile;
    Shared<T> x, x2, y, y2;
    Shared<float> shift, delta; // by keys: of the queries of a stage
    Shared<uint64_t> barriers;

    NF_DEVICE HopperBackwardShared() {
        SharedMemory memory;
        x = memory.take<T>(Tile::kBlock);
        x2 = memory.take<T>(Tile::kBlock);
        y = memory.take<T>(Tile::kStages * Tile::kTile);
        y2 = memory.take<T>(Tile::kStages * Tile::kTile);
        shift = memory.take<float>(Tile::kStages * Tile::kColumns);
        delta = memory.take<float>(Tile::kStages * Tile::kColumns);
        barriers = memory.take<uint64_t>(1 + 2 * Tile::kStages);
    }
    NF_DEVICE Shared<uint64_t> block_came() const { return barriers.from(0); }
    NF_DEVICE Shared<uint64_t> came(int stage) const { return barriers.from(1 + stage); }
    NF_DEVICE Shared<uint64_t> read(int stage) const { return barriers.from(1 + Tile::kStages + stage); }
};

// What a block goes through: `count` tiles for each of `heads` query heads, the first of which is `head`.
struct HopperBackwardTiles {
    int64_t first;
    int count, heads;
    int64_t head;
};

// exp2 of (product times kLog2e scale - shift) is P; a row that saw nothing has none.
NF_DEVICE float shift_of(float lse) { return lse == -infinity<float>() ? infinity<float>() : lse * float(kLog2e); }

template <class T, int D, bool kByKeys>
NF_DEVICE void bring_tiles(const HopperBackwardArgs &args, const AttentionPlace &place,
                           const HopperBackwardTiles &tiles, const HopperBackwardShared<T, D> &shared) {
    typedef HopperBackwardTile<D> Tile;
    const AttentionArgs &attention = args.attention;
    const int64_t block_row = (kByKeys ? place.key_start : place.query_start) + place.first;
    if (lane() == 0) {
        expect_bytes(shared.block_came(), 2 * Tile::kBlock * int(sizeof(T)));
        load_panels<T, D>(shared.x, Tile::kRows, args.x, block_row, place.head, place.batch, shared.block_came());
        load_panels<T, D>(shared.x2, Tile::kRows, args.x2, block_row, place.head, place.batch, shared.block_came());
    }
    for (int i = 0; i < tiles.count * tiles.heads; ++i) {
        const int stage = i % Tile::kStages, round = i / Tile::kStages;
        const int64_t first = tiles.first + int64_t(i % tiles.count) * Tile::kColumns,
                      head =
                          kByKeys ? tiles.head + i / tiles.count : place.head / (attention.heads / attention.kv_heads),
                      row = (kByKeys ? place.query_start : place.key_start) + first;
        wait_phase(shared.read(stage), (round + 1) % 2); // at once in the first round
        if constexpr (kByKeys) {
            const int64_t row0 = (place.batch * attention.heads + head) * attention.queries + place.query_start;
            for (int at = lane(); at < Tile::kColumns; at += kWarp) {
                const bool there = first + at < place.queries;
                shared.shift[stage * Tile::kColumns + at] =
                    there ? shift_of(static_cast<const float *>(attention.lse)[row0 + first + at]) : 0.0f;
                shared.delta[stage * Tile::kColumns + at] =
                    there ? static_cast<const float *>(attention.delta)[row0 + first + at] : 0.0f;
            }
        }
        if (lane() == 0) {
            expect_bytes(shared.came(stage), 2 * Tile::kTile * int(sizeof(T)));
            load_panels<T, D>(shared.y.from(stage * Tile::kTile), Tile::kColumns, args.y, row, head, place.batch,
                              shared.came(stage));
            load_panels<T, D>(shared.y2.from(stage * Tile::kTile), Tile::kColumns, args.y2, row, head, place.batch,
                              shared.came(stage));
        } else if (kByKeys) {
            arrive_phase(shared.came(stage)); // this lane's statistics are there
        }
    }
}

// S or dP of a warpgroup's rows.
template <class T, int D> NF_DEVICE void begin_pairs(float (&c)[8][4], Shared<T> rows, int row, Shared<T> tile) {
    typedef HopperBackwardTile<D> Tile;
    static_assert(Tile::kColumns == 64);
    NF_UNROLL
    for (int k = 0; k < D; k += 16)
        multiply_shared<false, false>(c, columns_of_tile(rows, Tile::kRows, row, k),
                                      columns_of_tile(tile, Tile::kColumns, 0, k), k > 0, T());
    end_products();
}

template <class T, int D, bool kByKeys>
NF_DEVICE void make_gradients(const AttentionArgs &args, const AttentionPlace &place, const HopperBackwardTiles &tiles,
                              const HopperBackwardShared<T, D> &shared) {
    typedef HopperBackwardTile<D> Tile;
    constexpr int kColumns = Tile::kColumns, kScores = kColumns / 8, kDepth = kColumns / 16;
    const int group = thread() / kGroup - 1, t = lane() % 4;
    const int64_t row0 = place.first + group * Tile::kGroupRows, mine = row0 + warp() % 4 * 16 + lane() / 4;
    const float exponent = float(args.scale * kLog2e);
    float dx[D / 8][4] = {}, dx2[kByKeys ? D / 8 : 1][4] = {};
    float shift[2] = {}, delta[2] = {}; // by queries: of this lane's rows
    if constexpr (!kByKeys) {
        const int64_t row = (place.batch * args.heads + place.head) * args.queries + place.query_start;
        const RowStatistics<float> of_row(args, row, mine, place.queries);
        for (int r = 0; r < 2; ++r) {
            shift[r] = shift_of(of_row.lse[r]);
            delta[r] = of_row.delta[r];
        }
    }
    wait_phase(shared.block_came(), 0);
    for (int i = 0; i < tiles.count * tiles.heads; ++i) {
        const int stage = i % Tile::kStages;
        const int64_t column0 = tiles.first + int64_t(i % tiles.count) * kColumns;
        const Shared<T> y = shared.y.from(stage * Tile::kTile), y2 = shared.y2.from(stage * Tile::kTile);
        const int64_t query = kByKeys ? column0 : row0, key = kByKeys ? row0 : column0;
        const bool seen = query + 64 <= place.queries && key + 64 <= place.keys && key >= place.low + query + 63 &&
                          key + 63 <= place.high + query;
        wait_phase(shared.came(stage), i / Tile::kStages % 2);
        bool careful = false;
        if (!seen) {
            careful = not_finite(y, Tile::kTile);
            if constexpr (kByKeys)
                careful = careful || not_finite(y2, Tile::kTile);
            careful = group_any(1 + group, kGroup, careful);
        }
        float p[kScores][4], ds[kScores][4];
        pin(p);
        pin(ds);
        begin_products();
        begin_pairs<T, D>(p, shared.x, group * Tile::kGroupRows, y);
        begin_pairs<T, D>(ds, shared.x2, group * Tile::kGroupRows, y2);
        wait_products<1>();
        pin(p);
        // The columns that each of the lane's rows may see.
        int first[2] = {0, 0}, last[2] = {kColumns - 1, kColumns - 1};
        if (!seen)
            for (int r = 0; r < 2; ++r) {
                const int64_t row = mine + 8 * r;
                const KeyRange range = kByKeys
                                           ? KeyRange{row - place.high, smaller_of(row - place.low, place.queries - 1)}
                                           : KeyRange{place.low + row, smaller_of(place.high + row, place.keys - 1)};
                first[r] = int(smaller_of(int64_t(kColumns), larger_of(int64_t(0), range.first - column0)));
                last[r] = int(larger_of(int64_t(-1), smaller_of(int64_t(kColumns), range.last - column0)));
            }
        auto sees = [&](int n, int e) {
            const int column = n * 8 + 2 * t + e % 2;
            return column >= first[e / 2] && column <= last[e / 2];
        };
        const auto of_column = [&](int n, int e) { return stage * kColumns + n * 8 + 2 * t + e % 2; };
        NF_UNROLL
        for (int n = 0; n < kScores; ++n)
            NF_UNROLL
        for (int e = 0; e < 4; ++e) {
            const float minus = kByKeys ? shared.shift[of_column(n, e)] : shift[e / 2];
            p[n][e] = fast_exp2(fmaf(p[n][e], exponent, -minus));
        }
        if (!seen) {
            NF_UNROLL
            for (int n = 0; n < kScores; ++n)
                NF_UNROLL
            for (int e = 0; e < 4; ++e)
                p[n][e] = sees(n, e) ? p[n][e] : 0.0f;
        }
        uint32_t weights[kDepth][4], weights2[kDepth][4];
        if constexpr (kByKeys)
            to_operand<T>(p, weights2);
        wait_products<0>();
        pin(ds);
        NF_UNROLL
        for (int n = 0; n < kScores; ++n)
            NF_UNROLL
        for (int e = 0; e < 4; ++e)
            ds[n][e] = p[n][e] * (ds[n][e] - (kByKeys ? shared.delta[of_column(n, e)] : delta[e / 2]));
        if (!seen) {
            NF_UNROLL
            for (int n = 0; n < kScores; ++n)
                NF_UNROLL
            for (int e = 0; e < 4; ++e)
                ds[n][e] = sees(n, e) ? ds[n][e] : 0.0f;
        }
        to_operand<T>(ds, weights);
        if (careful) {
            add_by_hand(dx, weights, y);
            if constexpr (kByKeys)
                add_by_hand(dx2, weights2, y2);
        } else {
            pin(dx);
            pin(dx2);
            begin_products();
            NF_UNROLL
            for (int k = 0; k < kDepth; ++k) {
                if constexpr (kByKeys)
                    multiply_registers<true>(dx2, weights2[k], rows_of_tile(y2, kColumns, 16 * k), true, T());
                multiply_registers<true>(dx, weights[k], rows_of_tile(y, kColumns, 16 * k), true, T());
            }
            end_products();
            wait_products<0>();
            pin(dx);
            pin(dx2);
        }
        release(shared.read(stage));
    }
    NF_UNROLL
    for (int r = 0; r < 2; ++r) {
        const int64_t row = mine + 8 * r;
        if (row >= (kByKeys ? place.keys : place.queries))
            continue;
        const int64_t at = (kByKeys ? place.key_start : place.query_start) + row;
        store_row(rows_of<T>(args, kByKeys ? args.dk : args.dq, place.batch, place.head, at), dx, r, int(args.dim),
                  float(args.scale));
        if constexpr (kByKeys)
            store_row(rows_of<T>(args, args.dv, place.batch, place.head, at), dx2, r, int(args.value_dim), 1.0f);
    }
}

#endif

template <class T, int D, bool kByKeys>
NF_KERNEL_ALONE(HopperBackwardTile<D>::kThreads)
attention_hopper_backward(NF_ARGS HopperBackwardArgs args) {
#ifdef NF_HOPPER
    typedef HopperBackwardTile<D> Tile;
    AttentionPlace place;
    if (!find_place(args.attention, kByKeys, Tile::kRows, place))
        return;
    const int64_t rows = smaller_of(int64_t(Tile::kRows), (kByKeys ? place.keys : place.queries) - place.first);
    const KeyRange range = kByKeys ? queries_of(args.attention, place, place.first, rows)
                                   : keys_of(args.attention, place, place.first, rows);
    const int64_t first = range.first / Tile::kColumns * Tile::kColumns,
                  group = args.attention.heads / args.attention.kv_heads;
    const HopperBackwardTiles tiles{first, int(larger_of(int64_t(0), ceil_div(range.last - first, Tile::kColumns))),
                                    kByKeys ? int(group) : 1, place.head * group};
    const HopperBackwardShared<T, D> shared;
    if (thread() == 0) {
        init_phases(shared.block_came(), 1);
        for (int stage = 0; stage < Tile::kStages; ++stage) {
            init_phases(shared.came(stage), kByKeys ? kWarp : 1);
            init_phases(shared.read(stage), Tile::kConsumers * kGroup / kWarp);
        }
        publish_phases();
    }
    barrier();
    constexpr bool kMoves = kByKeys || D > 64; // else the 168 registers that all begin with are enough
    if (thread() < kGroup) {
        if constexpr (kMoves)
            give_registers<Tile::kProducerRegisters>();
        if (warp() == 0 && (kByKeys || lane() == 0))
            bring_tiles<T, D, kByKeys>(args, place, tiles, shared);
    } else {
        if constexpr (kMoves)
            take_registers<Tile::kConsumerRegisters>();
        make_gradients<T, D, kByKeys>(args.attention, place, tiles, shared);
    }
#endif
}

} // namespace nf::cuda
