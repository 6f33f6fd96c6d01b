#include "cuda/kernels/attention_hopper.hpp"

#include "cuda/launch.hpp"
#include "cuda/launchers/attention_args.hpp"
#include "cuda/tensor_map.hpp"

namespace nf::cuda {

#ifdef NUMFORMER_CUDA_HOPPER // this build has code for sm_90a
namespace {

// One stride for all leading axes. False: there is none.
bool join_leading(const AttentionArgs &args, const AttentionOperand &x, int64_t &stride) {
    int64_t below = 1; // steps of the innermost axis that one step of this one is
    stride = 0;
    for (int axis = args.leading_axes - 1; axis >= 0; --axis) {
        if (args.leading[axis] == 1)
            continue;
        if (below == 1)
            stride = x.batch[axis];
        else if (x.batch[axis] != stride * below)
            return false;
        below *= args.leading[axis];
    }
    return true;
}

bool map_operand(const AttentionArgs &args, const AttentionOperand &x, int64_t width, int64_t rows, int64_t heads,
                 int tile_rows, TensorMap &map) {
    TiledMatrices matrices{x.data, {width, rows, heads, args.batches}, {x.row, x.head, 0}, tile_rows};
    return join_leading(args, x, matrices.strides[2]) && make_tensor_map(map, matrices);
}

template <int D> bool prepare(const AttentionArgs &args, HopperAttentionArgs &to) {
    typedef HopperTile<D> Tile;
    to.attention = args;
    return map_operand(args, args.q, args.dim, args.queries, args.heads, Tile::kRows, to.q) &&
           map_operand(args, args.k, args.dim, args.keys, args.kv_heads, Tile::kColumns, to.k) &&
           map_operand(args, args.v, args.value_dim, args.keys, args.kv_heads, Tile::kColumns, to.v);
}

template <class T, int D> bool run(const AttentionInputs &in, const AttentionArgs &args, Stream stream) {
    typedef HopperTile<D> Tile;
    HopperAttentionArgs all;
    if (!prepare<D>(args, all))
        return false;
    constexpr int64_t kShared =
        shared_bytes<T>(Tile::kQueries + 2 * Tile::kStages * Tile::kTile) + shared_bytes<uint64_t>(Tile::kBarriers);
    launch(in.operation, blocks_of(args, false, Tile::kRows), Tile::kThreads, kShared, stream, attention_hopper<T, D>,
           all);
    return true;
}

// What the kernel can do, but for where the arrays lie.
bool suits(const AttentionInputs &in, const AttentionArgs &args) {
    return !in.mask && !in.bias && !in.relative && !in.slopes && !in.sinks && !in.global && in.softcap == 0 &&
           in.dropout.p == 0 && in.scale > 0 && std::max(args.dim, args.value_dim) <= 128;
}

} // namespace

bool attention_by_wgmma(const AttentionInputs &in, const AttentionArgs &args, Stream stream) {
    if (!is_half(in.q.dtype) || in.kernel == "mma.sync" || !suits(in, args) || capability() != 90)
        return false;
    const bool narrow = std::max(args.dim, args.value_dim) <= 64;
    if (in.q.dtype == DType::bf16)
        return narrow ? run<bf16, 64>(in, args, stream) : run<bf16, 128>(in, args, stream);
    return narrow ? run<f16, 64>(in, args, stream) : run<f16, 128>(in, args, stream);
}

#else

bool attention_by_wgmma(const AttentionInputs &, const AttentionArgs &, Stream) { return false; }

#endif

} // namespace nf::cuda
