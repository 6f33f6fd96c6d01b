// Updates in place, each array read and written once, all arrays of a model in one parallel region.
//
//   SGD:    g = scale grad + decay w;  u = momentum u + g;  w -= lr u, or lr (g + momentum u) in Nesterov's form
//           c = {lr, momentum, decay};  first = u, or null without momentum
//   AdamW   (Loshchilov and Hutter, 2019): g = scale grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
//           w = keep w - rate m / (sqrt(v) root + eps), with keep = 1 - lr decay, rate = lr / (1 - b1^t), root = 1 /
//           sqrt(1 - b2^t) c = {b1, 1 - b1, b2, 1 - b2, keep, rate, root, eps}
#include "kernels/rows.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

constexpr int64_t kChunk = 16384; // elements: what a thread takes at once, and what is summed before sums are added

// f(array, begin, end) over all chunks of all arrays; `chunk` counts through them.
template <class F> void each_chunk(int64_t arrays, const int64_t *sizes, F f) {
    int64_t chunks = 0;
    for (int64_t i = 0; i < arrays; ++i)
        chunks += ceil_div(sizes[i], kChunk);
    parallel_ranges(chunks, kGrain / kChunk, [&](int64_t begin, int64_t end) {
        int64_t array = 0, before = 0; // chunks before this array
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            while (chunk >= before + ceil_div(sizes[array], kChunk))
                before += ceil_div(sizes[array++], kChunk);
            const int64_t first = (chunk - before) * kChunk;
            f(chunk, array, first, smaller(sizes[array], first + kChunk));
        }
    });
}

template <class T> bool sgd_update(const UpdateArgs &args) {
    const T lr = T(args.c[0]), momentum = T(args.c[1]), decay = T(args.c[2]), scale = T(args.grad_scale);
    each_chunk(args.arrays, args.sizes, [&](int64_t, int64_t array, int64_t begin, int64_t end) {
        T *value = static_cast<T *>(args.values[array]) + begin;
        const T *grad = static_cast<const T *>(args.grads[array]) + begin;
        T *moment = args.first ? static_cast<T *>(args.first[array]) + begin : nullptr;
        for_each_vector<T>(end - begin, [&](int64_t i, int n) {
            const Vec<T> w = load_some(value + i, n);
            Vec<T> step = load_some(grad + i, n) * scale + w * decay;
            if (moment) {
                const Vec<T> u = load_some(moment + i, n) * momentum + step;
                store_some(moment + i, u, n);
                step = args.nesterov ? step + u * momentum : u;
            }
            store_some(value + i, w - step * lr, n);
        });
    });
    return true;
}

template <class T> bool adamw_update(const UpdateArgs &args) {
    const T b1 = T(args.c[0]), rest1 = T(args.c[1]), b2 = T(args.c[2]), rest2 = T(args.c[3]);
    const T keep = T(args.c[4]), rate = T(args.c[5]), root = T(args.c[6]), eps = T(args.c[7]),
            scale = T(args.grad_scale);
    each_chunk(args.arrays, args.sizes, [&](int64_t, int64_t array, int64_t begin, int64_t end) {
        T *value = static_cast<T *>(args.values[array]) + begin;
        const T *grad = static_cast<const T *>(args.grads[array]) + begin;
        T *first = static_cast<T *>(args.first[array]) + begin, *second = static_cast<T *>(args.second[array]) + begin;
        for_each_vector<T>(end - begin, [&](int64_t i, int n) {
            const Vec<T> g = load_some(grad + i, n) * scale;
            const Vec<T> m = load_some(first + i, n) * b1 + g * rest1;
            const Vec<T> v = load_some(second + i, n) * b2 + g * g * rest2;
            store_some(first + i, m, n);
            store_some(second + i, v, n);
            const Vec<T> spread = sqrt(v) * root + eps;
            store_some(value + i, load_some(value + i, n) * keep - m * rate / spread, n);
        });
    });
    return true;
}

// The squares of one vector's lanes, in double.
NF_INLINE Vec<double> squares(Vec<double> v) { return v * v; }
NF_INLINE Vec<double> squares(Vec<float> v) {
    typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
    Half half[2];
    memcpy(half, &v, sizeof v);
    const Vec<double> a = __builtin_convertvector(half[0], Vec<double>),
                      b = __builtin_convertvector(half[1], Vec<double>);
    return a * a + b * b;
}

template <class T> bool sum_of_squares(const NormOfListArgs &args) {
    typedef Acc<T> A;
    int64_t chunks = 0;
    for (int64_t i = 0; i < args.arrays; ++i)
        chunks += ceil_div(args.sizes[i], kChunk);
    Scratch<double> sums(chunks);
    if (!sums)
        return false;
    each_chunk(args.arrays, args.sizes, [&](int64_t chunk, int64_t array, int64_t begin, int64_t end) {
        const T *x = static_cast<const T *>(args.data[array]) + begin;
        Vec<double> a = {}, b = {};
        int64_t i = 0;
        for (; i + 2 * kLanes<A> <= end - begin; i += 2 * kLanes<A>) {
            a += squares(load(x + i));
            b += squares(load(x + i + kLanes<A>));
        }
        for_each_vector<A>(end - begin - i, [&](int64_t j, int n) { a += squares(load_some(x + i + j, n)); });
        sums.data[chunk] = reduce_add<double>(a + b);
    });
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        total += sums.data[chunk];
    *args.sum_of_squares = total;
    return true;
}

} // namespace

void fill_optimizer(Kernels &table) {
    table.sgd_update[int(DType::f32)] = sgd_update<float>;
    table.sgd_update[int(DType::f64)] = sgd_update<double>;
    table.adamw_update[int(DType::f32)] = adamw_update<float>;
    table.adamw_update[int(DType::f64)] = adamw_update<double>;
    NF_FILL(sum_of_squares, sum_of_squares);
}

} // namespace nf::NUMFORMER_LEVEL
