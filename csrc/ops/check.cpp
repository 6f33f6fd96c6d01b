#include "ops/check.hpp"

#include "core/error.hpp"

#include <cmath>
#include <cstdio>
#include <new>

namespace nf::ops {
namespace {

std::string text_of(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

template <class I>
int64_t check_range(const char *operation, const char *argument, const View &view, int64_t limit,
                    std::optional<int64_t> ignored) {
    const I *p = reinterpret_cast<const I *>(view.data);
    const int64_t count = view.size();
    int64_t used = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t value = p[i];
        if (ignored && value == *ignored)
            continue;
        if (value < 0 || value >= limit)
            fail_value(operation, std::string(argument) + " must be in [0, " + std::to_string(limit) + ")" +
                                      (ignored ? " or " + std::to_string(*ignored) : "") + ", got " +
                                      std::to_string(value));
        ++used;
    }
    return used;
}

} // namespace

void require_shape(const char *operation, const char *argument, const View &view, const Shape &expected) {
    if (view.shape != expected)
        fail_value(operation, std::string(argument) + " must have shape " + to_string(expected) + ", got " +
                                  to_string(view.shape));
}

void require_axes(const char *operation, const char *argument, const View &view, int axes) {
    if (view.ndim() < axes)
        fail_value(operation, std::string(argument) + " must have at least " + std::to_string(axes) +
                                  (axes == 1 ? " axis" : " axes") + ", got shape " + to_string(view.shape));
}

void require_columns(const char *operation, const char *argument, const View &view) {
    require_axes(operation, argument, view, 1);
    if (view.shape.back() == 0)
        fail_value(operation, std::string(argument) + " must have at least one element on its last axis, got shape " +
                                  to_string(view.shape));
}

void require_finite(const char *operation, const char *argument, double value) {
    if (!std::isfinite(value))
        fail_value(operation, std::string(argument) + " must be finite, got " + text_of(value));
}

void require_range(const char *operation, const char *argument, double value, double low, double high) {
    if (!(value >= low && value <= high))
        fail_value(operation, std::string(argument) + " must be in [" + text_of(low) + ", " + text_of(high) +
                                  "], got " + text_of(value));
}

Shape leading(const Shape &shape) { return Shape(shape.begin(), shape.end() - 1); }

int64_t row_count(const View &view) {
    int64_t rows = 1;
    for (int axis = 0; axis + 1 < view.ndim(); ++axis)
        rows *= view.shape[axis];
    return rows;
}

int64_t column_count(const View &view) { return view.shape.back(); }

int64_t check_integers(const char *operation, const char *argument, const View &view, int64_t limit,
                       std::optional<int64_t> ignored) {
    if (view.dtype == DType::i64)
        return check_range<int64_t>(operation, argument, view, limit, ignored);
    if (view.dtype == DType::i32)
        return check_range<int32_t>(operation, argument, view, limit, ignored);
    fail_type(operation, std::string(argument) + " must have dtype int32 or int64, got " + name_of(view.dtype));
}

Integers integers_of(const View &view) { return {view.data, view.dtype == DType::i64}; }

std::vector<int64_t> check_starts(const char *operation, const char *argument, const View &view, const char *packed,
                                  int64_t total) {
    if (view.dtype != DType::i32 && view.dtype != DType::i64)
        fail_type(operation, std::string(argument) + " must have dtype int32 or int64, got " + name_of(view.dtype));
    if (view.ndim() != 1 || view.size() == 0)
        fail_value(operation,
                   std::string(argument) + " must have shape (sequences + 1,), got " + to_string(view.shape));
    std::vector<int64_t> values(static_cast<size_t>(view.size()));
    for (size_t i = 0; i < values.size(); ++i)
        values[i] = view.dtype == DType::i64 ? reinterpret_cast<const int64_t *>(view.data)[i]
                                             : reinterpret_cast<const int32_t *>(view.data)[i];
    if (values.front() != 0)
        fail_value(operation, std::string(argument) + " must begin with 0, got " + std::to_string(values.front()));
    for (size_t i = 1; i < values.size(); ++i)
        if (values[i] < values[i - 1])
            fail_value(operation, std::string(argument) + " must not decrease, got " + std::to_string(values[i]) +
                                      " after " + std::to_string(values[i - 1]));
    if (values.back() != total)
        fail_value(operation, std::string(argument) + " must end with the rows of " + packed + ", " +
                                  std::to_string(total) + ", got " + std::to_string(values.back()));
    return values;
}

void require_memory(bool done) {
    if (!done)
        throw std::bad_alloc();
}

} // namespace nf::ops
