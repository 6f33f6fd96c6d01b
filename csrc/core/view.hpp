// A view of somebody else's array: pointer, dtype, shape, strides (in elements). Used by ops and bindings, not by
// kernels.
#pragma once
#include "core/dtype.hpp"

#include <string>
#include <vector>

namespace nf {

using Shape = std::vector<int64_t>;

struct View {
    char *data = nullptr;
    DType dtype = DType::f32;
    Shape shape;
    Shape strides; // in elements

    int ndim() const { return static_cast<int>(shape.size()); }
    int64_t size() const {
        int64_t n = 1;
        for (int64_t s : shape)
            n *= s;
        return n;
    }
    int64_t item_size() const { return kItemSize[static_cast<int>(dtype)]; }
    bool is_contiguous() const {
        if (size() == 0) // an empty array may have any strides
            return true;
        int64_t expected = 1;
        for (int axis = ndim() - 1; axis >= 0; --axis) {
            if (shape[axis] != 1 && strides[axis] != expected)
                return false;
            expected *= shape[axis];
        }
        return true;
    }
};

// "(2, 3)", as NumPy prints a shape.
std::string to_string(const Shape &shape);
inline const char *name_of(DType dtype) { return kDTypeName[static_cast<int>(dtype)]; }

} // namespace nf
