// Checks that most operations share. Messages: operation, argument, expected, received.
#pragma once
#include "core/view.hpp"
#include "runtime/kernels.hpp"

#include <optional>
#include <string>
#include <vector>

namespace nf::ops {

void require_shape(const char *operation, const char *argument, const View &view, const Shape &expected);
// At least `axes` axes.
void require_axes(const char *operation, const char *argument, const View &view, int axes);
// The last axis has an element.
void require_columns(const char *operation, const char *argument, const View &view);
void require_finite(const char *operation, const char *argument, double value);
void require_range(const char *operation, const char *argument, double value, double low, double high);

// float64 for float64, else float32: the type of losses and of the statistics of rows.
inline DType statistics_type(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }
// Without the last axis, and how many rows that is.
Shape leading(const Shape &shape);
int64_t row_count(const View &view);
int64_t column_count(const View &view);

// int32 or int64 (TypeError), each in [0, limit) or `ignored` (ValueError with the first that is not). Returns how many
// are not ignored.
int64_t check_integers(const char *operation, const char *argument, const View &view, int64_t limit,
                       std::optional<int64_t> ignored = std::nullopt);
Integers integers_of(const View &view);

// Where packed sequences begin, and the end: integers from 0 to `total`, the rows of `packed`, not decreasing.
std::vector<int64_t> check_starts(const char *operation, const char *argument, const View &view, const char *packed,
                                  int64_t total);

// A kernel returned false: memory ran out.
void require_memory(bool done);

} // namespace nf::ops
