// The element types of arrays. Plain data without functions, so that kernel code of every level may include it.
#pragma once
#include <stdint.h>

namespace nf {

enum class DType : int { f32, f64, f16, bf16, i32, i64, boolean };

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

constexpr int64_t kItemSize[] = {4, 8, 2, 2, 4, 8, 1};
constexpr const char *kDTypeName[] = {"float32", "float64", "float16", "bfloat16", "int32", "int64", "bool"};

} // namespace nf
