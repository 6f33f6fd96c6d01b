// softmax: y_i = exp(x_i - max x) / sum_j exp(x_j - max x);   backward: dx = y (dy - sum_j dy_j y_j).
//
// Rows (inner = 1) are read once from memory, the second and third pass find them in cache. Along another axis the
// lanes of a vector are neighbours of the inner axis, each with its own sum, in the order of the axis.
#include "kernels/rows.hpp"
#include "simd/math.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

template <class T> void softmax_row(int64_t count, const T *x, T *y) {
    typedef Acc<T> A;
    const Vec<A> top = broadcast(row_max<A>(count, x));
    // Exponentials are kept in y where nothing is lost by that, and computed again otherwise.
    constexpr bool kKeep = sizeof(T) == sizeof(A);
    const A sum = row_sum<A>(count, [&](int64_t i, int n) {
        const Vec<A> e = exp(load_some(x + i, n) - top);
        if constexpr (kKeep)
            store_some(y + i, e, n);
        return e;
    });
    const Vec<A> factor = broadcast(A(1) / sum);
    for_each_vector<A>(count, [&](int64_t i, int n) {
        if constexpr (kKeep)
            store_some(y + i, load_some(y + i, n) * factor, n);
        else
            store_some(y + i, exp(load_some(x + i, n) - top) * factor, n);
    });
}

template <class T> void softmax_columns(int64_t count, int64_t inner, int lanes, const T *x, T *y) {
    typedef Acc<T> A;
    Vec<A> top = broadcast(A(-__builtin_inf())), sum = {};
    for (int64_t i = 0; i < count; ++i)
        top = max(top, load_some(x + i * inner, lanes));
    for (int64_t i = 0; i < count; ++i)
        sum += exp(load_some(x + i * inner, lanes) - top);
    const Vec<A> factor = A(1) / sum;
    for (int64_t i = 0; i < count; ++i)
        store_some(y + i * inner, exp(load_some(x + i * inner, lanes) - top) * factor, lanes);
}

template <class T> void softmax_backward_row(int64_t count, const T *dy, const T *y, T *dx) {
    typedef Acc<T> A;
    const A sum = row_sum<A>(count, [&](int64_t i, int n) { return load_some(dy + i, n) * load_some(y + i, n); });
    for_each_vector<A>(
        count, [&](int64_t i, int n) { store_some(dx + i, load_some(y + i, n) * (load_some(dy + i, n) - sum), n); });
}

template <class T>
void softmax_backward_columns(int64_t count, int64_t inner, int lanes, const T *dy, const T *y, T *dx) {
    typedef Acc<T> A;
    Vec<A> sum = {};
    for (int64_t i = 0; i < count; ++i)
        sum += load_some(dy + i * inner, lanes) * load_some(y + i * inner, lanes);
    for (int64_t i = 0; i < count; ++i)
        store_some(dx + i * inner, load_some(y + i * inner, lanes) * (load_some(dy + i * inner, lanes) - sum), lanes);
}

// row(offset) for each row, or columns(offset, lanes) for each vector's width of the inner axis.
template <class A, class Row, class Columns> void along_axis(const SoftmaxArgs &args, Row row, Columns columns) {
    if (args.inner == 1) {
        parallel_ranges(args.outer, row_grain(args.count, kHeavyGrain), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                row(i * args.count);
        });
        return;
    }
    const int64_t strips = ceil_div(args.inner, kLanes<A>);
    parallel_ranges(
        args.outer * strips, row_grain(args.count * kLanes<A>, kHeavyGrain), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t first = i % strips * kLanes<A>;
                const int64_t lanes = larger(1, smaller(kLanes<A>, args.inner - first)); // 1: GCC fears negative ones
                columns(i / strips * args.count * args.inner + first, int(lanes));
            }
        });
}

template <class T> bool softmax(const SoftmaxArgs &args) {
    const T *x = static_cast<const T *>(args.x);
    T *y = static_cast<T *>(args.out);
    along_axis<Acc<T>>(
        args, [&](int64_t at) { softmax_row(args.count, x + at, y + at); },
        [&](int64_t at, int lanes) { softmax_columns(args.count, args.inner, lanes, x + at, y + at); });
    return true;
}

template <class T> bool softmax_backward(const SoftmaxArgs &args) {
    const T *dy = static_cast<const T *>(args.dy), *y = static_cast<const T *>(args.x);
    T *dx = static_cast<T *>(args.out);
    along_axis<Acc<T>>(
        args, [&](int64_t at) { softmax_backward_row(args.count, dy + at, y + at, dx + at); },
        [&](int64_t at, int lanes) {
            softmax_backward_columns(args.count, args.inner, lanes, dy + at, y + at, dx + at);
        });
    return true;
}

} // namespace

void fill_softmax(Kernels &table) {
    NF_FILL(softmax, softmax);
    NF_FILL(softmax_backward, softmax_backward);
}

} // namespace nf::NUMFORMER_LEVEL
