#include "cuda/kernels/attention_hopper_backward.hpp"

#include "cuda/launchers/attention_hopper.hpp"

namespace nf::cuda {

#ifdef NUMFORMER_CUDA_HOPPER // this build has code for sm_90a
namespace {

template <class T, int D, bool kByKeys>
bool run_backward(const AttentionInputs &in, const AttentionArgs &args, Stream stream) {
    typedef HopperBackwardTile<D> Tile;
    HopperBackwardArgs all;
    all.attention = args;
    auto of_queries = [&](const AttentionOperand &x, int64_t width, int rows, TensorMap &map) {
        return map_operand(args, x, width, args.queries, args.heads, rows, map);
    };
    auto of_keys = [&](const AttentionOperand &x, int64_t width, int rows, TensorMap &map) {
        return map_operand(args, x, width, args.keys, args.kv_heads, rows, map);
    };
    const int rows_of_queries = kByKeys ? Tile::kColumns : Tile::kRows,
              rows_of_keys = kByKeys ? Tile::kRows : Tile::kColumns;
    if (!of_queries(args.q, args.dim, rows_of_queries, kByKeys ? all.y : all.x) ||
        !of_queries(args.dout, args.value_dim, rows_of_queries, kByKeys ? all.y2 : all.x2) ||
        !of_keys(args.k, args.dim, rows_of_keys, kByKeys ? all.x : all.y) ||
        !of_keys(args.v, args.value_dim, rows_of_keys, kByKeys ? all.x2 : all.y2))
        return false;
    constexpr int64_t kShared = shared_bytes<T>(2 * Tile::kBlock + 2 * Tile::kStages * Tile::kTile) +
                                shared_bytes<float>(2 * Tile::kStages * Tile::kColumns) +
                                shared_bytes<uint64_t>(1 + 2 * Tile::kStages);
    launch(in.operation, blocks_of(args, kByKeys, Tile::kRows), Tile::kThreads, kShared, stream,
           attention_hopper_backward<T, D, kByKeys>, all);
    return true;
}

// Both, or, where one operand cannot be read, neither: the maps of the second differ from those of the first in the
// rows of tiles only.
template <class T, int D> bool run_both_backward(const AttentionInputs &in, const AttentionArgs &args, Stream stream) {
    return run_backward<T, D, false>(in, args, stream) && run_backward<T, D, true>(in, args, stream);
}

} // namespace

bool attention_backward_by_wgmma(const AttentionInputs &in, const AttentionArgs &args, Stream stream) {
    return suits_wgmma(in, args) && with_hopper_width(in, args, [&](auto t, auto width) {
               return run_both_backward<decltype(t), decltype(width)::value>(in, args, stream);
           });
}

#else

bool attention_backward_by_wgmma(const AttentionInputs &, const AttentionArgs &, Stream) { return false; }

#endif

} // namespace nf::cuda
