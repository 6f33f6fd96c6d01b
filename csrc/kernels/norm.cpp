// Layer norm (Ba, Kiros and Hinton, 2016) and RMS norm (Zhang and Sennrich, 2019) of rows of n elements:
//
//   h = (x - mean) rstd, y = h weight + bias        rstd = 1 / sqrt(mean((x - mean)^2) + eps); RMS norm: the same with
//   mean = 0 g = dy weight, dx = rstd (g - mean(g) - h mean(g h)) + residual     RMS norm: without mean(g) dweight =
//   sum over rows of dy h, dbias = sum over rows of dy
//
// A row is read from memory once, later passes find it in L1. The variance is taken around the mean in a pass of its
// own: mean(x^2) - mean^2 would cancel. Sums over rows: see kChunkRows.
#include "kernels/rows.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// T: of the rows; W: of weight and bias.
template <class T, class W> void norm_of(const NormArgs &args) {
    typedef Acc<T> A;
    const int64_t columns = args.columns;
    const W *weight = static_cast<const W *>(args.weight), *bias = static_cast<const W *>(args.bias);
    parallel_ranges(args.rows, row_grain(columns), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T *x = static_cast<const T *>(args.x) + row * columns;
            T *y = static_cast<T *>(args.out) + row * columns;
            A mean = 0;
            if (args.centred)
                mean = row_sum<A>(columns, [&](int64_t j, int n) { return load_some(x + j, n); }) / A(columns);
            const A square = row_sum<A>(columns, [&](int64_t j, int n) {
                const Vec<A> d = load_some(x + j, n) - mean;
                return d * d;
            });
            const A rstd = A(1) / A(__builtin_sqrt(double(square / A(columns)) + args.eps));
            for_each_vector<A>(columns, [&](int64_t j, int n) {
                Vec<A> h = (load_some(x + j, n) - mean) * rstd;
                if (weight)
                    h = h * load_some(weight + j, n);
                if (bias)
                    h = h + load_some(bias + j, n);
                store_some(y + j, h, n);
            });
            if (args.mean)
                static_cast<A *>(args.mean)[row] = mean;
            if (args.rstd)
                static_cast<A *>(args.rstd)[row] = rstd;
        }
    });
}

template <class T> bool norm(const NormArgs &args) {
    if (sizeof(T) == 2 && args.weight_type == DType::f32)
        norm_of<T, Acc<T>>(args);
    else
        norm_of<T, T>(args);
    return true;
}

// One row: dx, and what it adds to dweight and dbias (either may be null).
template <class T, class W> void norm_backward_row(const NormArgs &args, int64_t row, Acc<T> *dweight, Acc<T> *dbias) {
    typedef Acc<T> A;
    const int64_t columns = args.columns, at = row * columns;
    const T *x = static_cast<const T *>(args.x) + at, *dy = static_cast<const T *>(args.dy) + at;
    const W *weight = static_cast<const W *>(args.weight);
    const T *residual = args.residual ? static_cast<const T *>(args.residual) + at : nullptr;
    T *dx = static_cast<T *>(args.out) + at;
    const A mean = args.centred ? static_cast<const A *>(args.mean)[row] : A(0);
    const A rstd = static_cast<const A *>(args.rstd)[row];
    Vec<A> sum_g = {}, sum_gh = {};
    // Lanes behind the end hold dy = 0, so they add nothing.
    for_each_vector<A>(columns, [&](int64_t j, int n) {
        const Vec<A> h = (load_some(x + j, n) - mean) * rstd, d = load_some(dy + j, n);
        if (dweight)
            store_some(dweight + j, load_some(dweight + j, n) + d * h, n);
        if (dbias)
            store_some(dbias + j, load_some(dbias + j, n) + d, n);
        const Vec<A> g = weight ? d * load_some(weight + j, n) : d;
        sum_g += g;
        sum_gh += first_lanes<A>(g * h, n, A(0));
    });
    const A mean_g = args.centred ? reduce_add<A>(sum_g) / A(columns) : A(0);
    const A mean_gh = reduce_add<A>(sum_gh) / A(columns);
    for_each_vector<A>(columns, [&](int64_t j, int n) {
        const Vec<A> h = (load_some(x + j, n) - mean) * rstd, d = load_some(dy + j, n);
        const Vec<A> g = weight ? d * load_some(weight + j, n) : d;
        Vec<A> gradient = (g - mean_g - h * mean_gh) * rstd;
        if (residual)
            gradient += load_some(residual + j, n);
        store_some(dx + j, gradient, n);
    });
}

template <class T, class W> bool norm_backward_of(const NormArgs &args) {
    typedef Acc<T> A;
    const int64_t columns = args.columns;
    const int64_t chunks = ceil_div(args.rows, kChunkRows);
    const int64_t stride = round_up(columns, 64 / int64_t(sizeof(A)));
    const int64_t sums = (args.dweight ? 1 : 0) + (args.dbias ? 1 : 0);
    Scratch<A> partial(chunks * sums * stride);
    if (!partial)
        return false;
    tasks_of_work(chunks, args.rows * columns, [&](int64_t chunk) {
        A *mine = partial.data + chunk * sums * stride;
        A *dweight = args.dweight ? mine : nullptr;
        A *dbias = args.dbias ? mine + (sums - 1) * stride : nullptr;
        memset(mine, 0, size_t(sums * stride) * sizeof(A));
        for (int64_t row = chunk * kChunkRows; row < smaller(args.rows, (chunk + 1) * kChunkRows); ++row)
            norm_backward_row<T, W>(args, row, dweight, dbias);
    });
    if (args.dweight)
        add_partials<A>(chunks, columns, partial.data, sums * stride, static_cast<W *>(args.dweight), false);
    if (args.dbias)
        add_partials<A>(chunks, columns, partial.data + (sums - 1) * stride, sums * stride,
                        static_cast<W *>(args.dbias), false);
    return true;
}

template <class T> bool norm_backward(const NormArgs &args) {
    if (sizeof(T) == 2 && args.weight_type == DType::f32)
        return norm_backward_of<T, Acc<T>>(args);
    return norm_backward_of<T, T>(args);
}

} // namespace

void fill_norm(Kernels &table) {
    NF_FILL(norm, norm);
    NF_FILL(norm_backward, norm_backward);
}

} // namespace nf::NUMFORMER_LEVEL
