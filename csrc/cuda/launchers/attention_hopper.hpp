// What the launchers for compute capability 9.0 share.
#pragma once
#include "cuda/launch.hpp"
#include "cuda/launchers/attention_args.hpp"
#include "cuda/tensor_map.hpp"

namespace nf::cuda {

// One stride for all leading axes. False: there is none.
inline bool join_leading(const AttentionArgs &args, const AttentionOperand &x, int64_t &stride) {
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

inline bool map_operand(const AttentionArgs &args, const AttentionOperand &x, int64_t width, int64_t rows,
                        int64_t heads, int tile_rows, TensorMap &map) {
    TiledMatrices matrices{x.data, {width, rows, heads, args.batches}, {x.row, x.head, 0}, tile_rows};
    return join_leading(args, x, matrices.strides[2]) && make_tensor_map(map, matrices);
}

// May the kernels do this call, but for where its arrays lie?
inline bool suits_wgmma(const AttentionInputs &in, const AttentionArgs &args) {
    return is_half(in.q.dtype) && in.kernel != "mma.sync" && capability() == 90 && !in.mask && !in.bias &&
           !in.relative && !in.slopes && !in.sinks && !in.global && in.softcap == 0 && in.dropout.p == 0 &&
           in.scale > 0 && std::max(args.dim, args.value_dim) <= 128;
}

// f(T(), integral_constant<int, D>) with the least D that both widths fit in.
template <class F> bool with_hopper_width(const AttentionInputs &in, const AttentionArgs &args, F f) {
    typedef std::integral_constant<int, 64> Narrow;
    typedef std::integral_constant<int, 128> Wide;
    const bool narrow = std::max(args.dim, args.value_dim) <= 64;
    if (in.q.dtype == DType::bf16)
        return narrow ? f(bf16(), Narrow()) : f(bf16(), Wide());
    return narrow ? f(f16(), Narrow()) : f(f16(), Wide());
}

} // namespace nf::cuda
