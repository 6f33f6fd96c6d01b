// What TMA must know of the matrices that it copies tiles of: a tensor map. The host makes it, the kernel gets it as an
// argument.
#pragma once
#include "cuda/device_hopper.hpp"
#include "cuda/launch.hpp"

#include <algorithm>

namespace nf::cuda {

// Matrices of 16-bit elements: (columns, rows, heads, batches), columns of unit stride, the others with strides in
// elements. Tiles have `tile_rows` rows and 64 columns, a panel of device_hopper.hpp.
struct TiledMatrices {
    void *data;
    int64_t sizes[4], strides[3];
    int tile_rows;
};

// What cuTensorMapEncodeTiled asks for (CUDA driver API, "Tensor Map Object Management").
inline bool can_be_tiled(TiledMatrices &x) {
    constexpr int64_t kMostSize = int64_t(1) << 31, kMostStride = int64_t(1) << 40; // coordinates are int32
    bool can = reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
    int64_t whole = (x.sizes[0] + 7) / 8 * 8; // of what one step along the axis before passes
    for (int axis = 0; axis < 4; ++axis) {
        can = can && x.sizes[axis] > 0 && x.sizes[axis] < kMostSize;
        if (axis == 0)
            continue;
        int64_t &stride = x.strides[axis - 1];
        if (x.sizes[axis] == 1) // is never taken
            stride = whole;
        can = can && stride >= 0 && stride % 8 == 0 && 2 * stride < kMostStride;
        whole = std::max(whole, stride);
    }
    return can;
}

} // namespace nf::cuda

#ifdef __CUDACC__
namespace nf::cuda {

typedef decltype(&cuTensorMapEncodeTiled) EncodeTiled;

// The driver's function, which is not linked to. Null: it has none.
inline EncodeTiled find_encode_tiled() {
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    const bool there = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<EncodeTiled>(found) : nullptr;
}

// False: TMA cannot read them.
inline bool make_tensor_map(TensorMap &map, TiledMatrices x) {
    static const EncodeTiled encode = find_encode_tiled();
    if (!encode || !can_be_tiled(x))
        return false;
    cuuint64_t sizes[4], strides[3];
    for (int axis = 0; axis < 4; ++axis)
        sizes[axis] = cuuint64_t(x.sizes[axis]);
    for (int axis = 0; axis < 3; ++axis)
        strides[axis] = cuuint64_t(2 * x.strides[axis]);
    const cuuint32_t box[4] = {kPanel, cuuint32_t(x.tile_rows), 1, 1}, steps[4] = {1, 1, 1, 1};
    return encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, x.data, sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

} // namespace nf::cuda
#else
#include "host/tensor_map.hpp"
#endif
