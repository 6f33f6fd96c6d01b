#include "cuda/kernels/attention_hopper.hpp"

#include "cuda/launchers/attention_hopper.hpp"

namespace nf::cuda {

#ifdef NUMFORMER_CUDA_HOPPER // this build has code for sm_90a

bool attention_by_wgmma(const AttentionInputs &in, const AttentionArgs &args, Stream stream) {
    return suits_wgmma(in, args) && with_hopper_width(in, args, [&](auto t, auto width) {
               typedef decltype(t) T;
               constexpr int D = decltype(width)::value;
               typedef HopperTile<D> Tile;
               HopperAttentionArgs all;
               all.attention = args;
               if (!map_operand(args, args.q, args.dim, args.queries, args.heads, Tile::kRows, all.q) ||
                   !map_operand(args, args.k, args.dim, args.keys, args.kv_heads, Tile::kColumns, all.k) ||
                   !map_operand(args, args.v, args.value_dim, args.keys, args.kv_heads, Tile::kColumns, all.v))
                   return false;
               constexpr int64_t kShared = shared_bytes<T>(Tile::kQueries + 2 * Tile::kStages * Tile::kTile) +
                                           shared_bytes<uint64_t>(Tile::kBarriers);
               launch(in.operation, blocks_of(args, false, Tile::kRows), Tile::kThreads, kShared, stream,
                      attention_hopper<T, D>, all);
               return true;
           });
}

#else

bool attention_by_wgmma(const AttentionInputs &, const AttentionArgs &, Stream) { return false; }

#endif

} // namespace nf::cuda
