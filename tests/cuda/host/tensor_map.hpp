// Tensor maps on the host; csrc/cuda/tensor_map.hpp says what they are.
#pragma once

namespace nf::cuda {

inline bool make_tensor_map(TensorMap &map, TiledMatrices x) {
    if (!can_be_tiled(x))
        return false;
    map.data = static_cast<const char *>(x.data);
    std::copy(x.sizes, x.sizes + 4, map.sizes);
    for (int axis = 0; axis < 3; ++axis)
        map.strides[axis] = 2 * x.strides[axis];
    map.columns = 64;
    map.rows = x.tile_rows;
    return true;
}

} // namespace nf::cuda
