// Updates in place, each array read and written once, all arrays of a model in one parallel region. The new values can
// be stored in 16 bits as well.
//
//   SGD:    g = scale grad + decay w;  u = momentum u + g;  w -= lr u, or lr (g + momentum u) in Nesterov's form
//           c = {lr, momentum, decay};  first = u, or null without momentum
//   Adam    (Kingma and Ba, 2015): g = scale grad + decay w;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
//           w = keep w - rate m / (sqrt(v) root + eps), with rate = lr / (1 - b1^t), root = 1 / sqrt(1 - b2^t);
//           keep = 1, or in AdamW (Loshchilov and Hutter, 2019) keep = 1 - lr decay and no decay in g
//           c = {b1, 1 - b1, b2, 1 - b2, keep, rate, root, eps, decay};  first = m, second = v
//   Adagrad (Duchi, Hazan and Singer, 2011): g = scale grad + decay w;  s += g^2;  w -= lr g / (sqrt(s) + eps)
//           c = {lr, eps, decay};  first = s
//   RMSprop (Tieleman and Hinton, 2012; centred: Graves, 2013): g = scale grad + decay w;  s = a s + (1 - a) g^2;
//           centred: m = a m + (1 - a) g and s - m^2, not below 0, for s;  step = g / (sqrt(s) + eps);
//           with momentum: u = momentum u + step for step;  w -= lr step
//           c = {lr, a, 1 - a, eps, decay, momentum};  first = s, second = m or null, third = u or null
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

// Where the new values of an array go in 16 bits as well: what the products of mixed precision read. At most one of the
// pointers is not null.
struct Copy {
    bf16 *brain = nullptr;
    f16 *half = nullptr;
};

NF_INLINE Copy copy_of(const UpdateArgs &args, int64_t array, int64_t begin) {
    Copy copy;
    if (args.copies && args.copies[array]) {
        if (args.copy_type == DType::bf16)
            copy.brain = static_cast<bf16 *>(args.copies[array]) + begin;
        else
            copy.half = static_cast<f16 *>(args.copies[array]) + begin;
    }
    return copy;
}

NF_INLINE void store_copy(const Copy &copy, int64_t i, Vec<float> value, int n) {
    if (copy.brain)
        store_some(copy.brain + i, value, n);
    else if (copy.half)
        store_some(copy.half + i, value, n);
}
NF_INLINE void store_copy(const Copy &, int64_t, Vec<double>, int) {} // float64 has none

// The gradient and what pulls a value to 0. Without decay a value that is infinite has no part in it (0 inf is NaN).
template <class T> NF_INLINE Vec<T> decayed(Vec<T> g, Vec<T> w, T decay) { return decay == 0 ? g : g + w * decay; }

template <class T> bool sgd_update(const UpdateArgs &args) {
    const T lr = T(args.c[0]), momentum = T(args.c[1]), decay = T(args.c[2]), scale = T(args.grad_scale);
    each_chunk(args.arrays, args.sizes, [&](int64_t, int64_t array, int64_t begin, int64_t end) {
        T *value = static_cast<T *>(args.values[array]) + begin;
        const T *grad = static_cast<const T *>(args.grads[array]) + begin;
        T *moment = args.first ? static_cast<T *>(args.first[array]) + begin : nullptr;
        const Copy copy = copy_of(args, array, begin);
        for_each_vector<T>(end - begin, [&](int64_t i, int n) {
            const Vec<T> w = load_some(value + i, n);
            Vec<T> step = decayed<T>(load_some(grad + i, n) * scale, w, decay);
            if (moment) {
                const Vec<T> u = load_some(moment + i, n) * momentum + step;
                store_some(moment + i, u, n);
                step = args.nesterov ? step + u * momentum : u;
            }
            const Vec<T> now = w - step * lr;
            store_some(value + i, now, n);
            store_copy(copy, i, now, n);
        });
    });
    return true;
}

template <class T> bool adam_update(const UpdateArgs &args) {
    const T b1 = T(args.c[0]), rest1 = T(args.c[1]), b2 = T(args.c[2]), rest2 = T(args.c[3]);
    const T keep = T(args.c[4]), rate = T(args.c[5]), root = T(args.c[6]), eps = T(args.c[7]), decay = T(args.c[8]),
            scale = T(args.grad_scale);
    each_chunk(args.arrays, args.sizes, [&](int64_t, int64_t array, int64_t begin, int64_t end) {
        T *value = static_cast<T *>(args.values[array]) + begin;
        const T *grad = static_cast<const T *>(args.grads[array]) + begin;
        T *first = static_cast<T *>(args.first[array]) + begin, *second = static_cast<T *>(args.second[array]) + begin;
        const Copy copy = copy_of(args, array, begin);
        for_each_vector<T>(end - begin, [&](int64_t i, int n) {
            const Vec<T> w = load_some(value + i, n);
            const Vec<T> g = decayed<T>(load_some(grad + i, n) * scale, w, decay);
            const Vec<T> m = load_some(first + i, n) * b1 + g * rest1;
            const Vec<T> v = load_some(second + i, n) * b2 + g * g * rest2;
            store_some(first + i, m, n);
            store_some(second + i, v, n);
            const Vec<T> spread = sqrt(v) * root + eps;
            const Vec<T> now = w * keep - m * rate / spread;
            store_some(value + i, now, n);
            store_copy(copy, i, now, n);
        });
    });
    return true;
}

template <class T> bool adagrad_update(const UpdateArgs &args) {
    const T lr = T(args.c[0]), eps = T(args.c[1]), decay = T(args.c[2]), scale = T(args.grad_scale);
    each_chunk(args.arrays, args.sizes, [&](int64_t, int64_t array, int64_t begin, int64_t end) {
        T *value = static_cast<T *>(args.values[array]) + begin, *sum = static_cast<T *>(args.first[array]) + begin;
        const T *grad = static_cast<const T *>(args.grads[array]) + begin;
        const Copy copy = copy_of(args, array, begin);
        for_each_vector<T>(end - begin, [&](int64_t i, int n) {
            const Vec<T> w = load_some(value + i, n);
            const Vec<T> g = decayed<T>(load_some(grad + i, n) * scale, w, decay);
            const Vec<T> s = load_some(sum + i, n) + g * g;
            store_some(sum + i, s, n);
            const Vec<T> now = w - g * lr / (sqrt(s) + eps);
            store_some(value + i, now, n);
            store_copy(copy, i, now, n);
        });
    });
    return true;
}

template <class T> bool rmsprop_update(const UpdateArgs &args) {
    const T lr = T(args.c[0]), alpha = T(args.c[1]), rest = T(args.c[2]), eps = T(args.c[3]), decay = T(args.c[4]),
            momentum = T(args.c[5]), scale = T(args.grad_scale);
    each_chunk(args.arrays, args.sizes, [&](int64_t, int64_t array, int64_t begin, int64_t end) {
        T *value = static_cast<T *>(args.values[array]) + begin, *square = static_cast<T *>(args.first[array]) + begin;
        T *mean = args.second ? static_cast<T *>(args.second[array]) + begin : nullptr;
        T *moment = args.third ? static_cast<T *>(args.third[array]) + begin : nullptr;
        const T *grad = static_cast<const T *>(args.grads[array]) + begin;
        const Copy copy = copy_of(args, array, begin);
        for_each_vector<T>(end - begin, [&](int64_t i, int n) {
            const Vec<T> w = load_some(value + i, n);
            const Vec<T> g = decayed<T>(load_some(grad + i, n) * scale, w, decay);
            Vec<T> s = load_some(square + i, n) * alpha + g * g * rest;
            store_some(square + i, s, n);
            if (mean) {
                const Vec<T> m = load_some(mean + i, n) * alpha + g * rest;
                store_some(mean + i, m, n);
                s = max(broadcast(T(0)), s - m * m); // the order keeps a NaN
            }
            Vec<T> step = g / (sqrt(s) + eps);
            if (moment) {
                step = load_some(moment + i, n) * momentum + step;
                store_some(moment + i, step, n);
            }
            const Vec<T> now = w - step * lr;
            store_some(value + i, now, n);
            store_copy(copy, i, now, n);
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
    table.adam_update[int(DType::f32)] = adam_update<float>;
    table.adam_update[int(DType::f64)] = adam_update<double>;
    table.adagrad_update[int(DType::f32)] = adagrad_update<float>;
    table.adagrad_update[int(DType::f64)] = adagrad_update<double>;
    table.rmsprop_update[int(DType::f32)] = rmsprop_update<float>;
    table.rmsprop_update[int(DType::f64)] = rmsprop_update<double>;
    NF_FILL(sum_of_squares, sum_of_squares);
}

} // namespace nf::NUMFORMER_LEVEL
