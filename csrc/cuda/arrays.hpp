// Arrays on the device as the bindings get them, and how a launcher finds the kernel of a dtype.
#pragma once
#include "core/dtype.hpp"
#include "core/error.hpp"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace nf::cuda {

typedef std::vector<int64_t> Shape;

struct Array {
    void *data;
    DType dtype;
    Shape shape, strides; // strides in elements
    int ndim() const { return int(shape.size()); }
    int64_t size() const {
        int64_t count = 1;
        for (int64_t n : shape)
            count *= n;
        return count;
    }
    int64_t columns() const { return shape.back(); }
    int64_t row() const { return ndim() == 2 ? strides[0] : columns(); } // from one to the next, in elements
    int64_t rows() const {                                               // of all leading axes
        int64_t count = 1;
        for (size_t axis = 0; axis + 1 < shape.size(); ++axis)
            count *= shape[axis];
        return count;
    }
};

typedef std::optional<Array> MaybeArray;
// Scratch on the device, of so many bytes and aligned to 256, that lives until what is launched now has run.
typedef std::function<void *(int64_t bytes)> Allocate;

inline void *data_of(const MaybeArray &array) { return array ? array->data : nullptr; }
inline bool is_float(DType dtype) { return int(dtype) <= int(DType::bf16); }
inline bool is_half(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }
// Of sums and statistics beside an array of `dtype`.
inline DType acc_of(DType dtype) { return is_half(dtype) ? DType::f32 : dtype; }

// f(T()) with the element type of `dtype`, which is a float's.
template <class F> void with_float(DType dtype, F f) {
    switch (dtype) {
    case DType::f64:
        return f(double());
    case DType::f16:
        return f(f16());
    case DType::bf16:
        return f(bf16());
    default:
        return f(float());
    }
}
// f(T(), W()): W is T, or float beside a 16-bit T.
template <class F> void with_wide(DType dtype, DType wide, F f) {
    with_float(dtype, [&](auto t) {
        typedef decltype(t) T;
        if constexpr (sizeof(T) == 2) {
            if (wide == DType::f32)
                return f(T(), float());
        }
        f(T(), T());
    });
}

} // namespace nf::cuda
