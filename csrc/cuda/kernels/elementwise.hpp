// add: out = a + b, b again and again.  cast: out = scale x in another type.  dropout: as csrc/kernels/dropout.cpp.
// softmax of rows and its backward: dx = y (dy - sum(dy y)).
#pragma once
#include "core/philox.hpp"
#include "cuda/kernels/activation.hpp"
#include "cuda/kernels/rows.hpp"

namespace nf::cuda {

struct AddArgs {
    const void *a, *b;
    void *out;
    int64_t count, period; // of b
};
template <class T, class B> NF_KERNEL(kElementThreads) add(NF_ARGS AddArgs args) {
    const T *a = static_cast<const T *>(args.a);
    const B *b = static_cast<const B *>(args.b);
    for (int64_t i = block() * kElementThreads + thread(); i < args.count; i += blocks() * kElementThreads)
        store(static_cast<T *>(args.out), i, load(a, i) + Acc<T>(load(b, i % args.period)));
}

struct CastArgs {
    const void *x;
    void *out;
    int64_t count;
    double scale;
    bool is_aligned;
};
template <class T, class O> constexpr int kCastPack = kPack<T> > kPack<O> ? kPack<T> : kPack<O>;
template <class T, class O> NF_KERNEL(kElementThreads) cast(NF_ARGS CastArgs args) {
    const T *x = static_cast<const T *>(args.x);
    O *out = static_cast<O *>(args.out);
    const Acc<T> scale = Acc<T>(args.scale);
    constexpr int kCount = kCastPack<T, O>;
    for_packs<kCount>(
        args.count, kElementThreads,
        [&](int64_t first) {
            Acc<T> from[kCount];
            Acc<O> to[kCount];
            load_pack(x + first, args.is_aligned, from);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                to[i] = Acc<O>(from[i] * scale);
            store_pack(out + first, args.is_aligned, to);
        },
        [&](int64_t i) { store(out, i, load(x, i) * scale); });
}

struct SoftmaxArgs {
    const void *x, *dy; // backward: x is the y of the forward
    void *out;
    int64_t rows, columns;
};
template <class T, bool kLong> NF_KERNEL(kRowThreads) softmax(NF_ARGS SoftmaxArgs args) {
    typedef Acc<T> A;
    RowGroup<A, kLong> group;
    for (int64_t row = group.first_row(); row < args.rows; row += group.row_step()) {
        const T *x = static_cast<const T *>(args.x) + row * args.columns;
        T *y = static_cast<T *>(args.out) + row * args.columns;
        A top = -infinity<A>();
        for (int64_t j = group.place(); j < args.columns; j += group.size())
            top = larger_of(top, load(x, j));
        top = group.max(top);
        A sum = 0;
        for (int64_t j = group.place(); j < args.columns; j += group.size())
            sum += exp_of(load(x, j) - top);
        const A inverse = A(1) / group.sum(sum);
        for (int64_t j = group.place(); j < args.columns; j += group.size())
            store(y, j, exp_of(load(x, j) - top) * inverse);
    }
}
template <class T, bool kLong> NF_KERNEL(kRowThreads) softmax_backward(NF_ARGS SoftmaxArgs args) {
    typedef Acc<T> A;
    RowGroup<A, kLong> group;
    for (int64_t row = group.first_row(); row < args.rows; row += group.row_step()) {
        const T *y = static_cast<const T *>(args.x) + row * args.columns;
        const T *dy = static_cast<const T *>(args.dy) + row * args.columns;
        T *dx = static_cast<T *>(args.out) + row * args.columns;
        A part = 0;
        for (int64_t j = group.place(); j < args.columns; j += group.size())
            part += load(dy, j) * load(y, j);
        const A dot = group.sum(part);
        for (int64_t j = group.place(); j < args.columns; j += group.size())
            store(dx, j, load(y, j) * (load(dy, j) - dot));
    }
}

// ---- dropout

// The random word of an element: see core/philox.hpp and csrc/kernels/random.hpp, whose bits these are.
NF_DEVICE uint32_t random_word(uint32_t seed, uint32_t layer, uint32_t step, uint32_t sample, int64_t element) {
    uint32_t c0 = uint32_t(element / 4), c1 = sample, c2 = step, c3 = uint32_t((element / 4) >> 32);
    NF_UNROLL
    for (uint32_t round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
        c0 = uint32_t(p1 >> 32) ^ c1 ^ uint32_t(seed + round * 0x9E3779B9u);
        c2 = uint32_t(p0 >> 32) ^ c3 ^ uint32_t(layer + round * 0xBB67AE85u);
        c1 = uint32_t(p1);
        c3 = uint32_t(p0);
    }
    const int which = int(element % 4);
    return which == 0 ? c0 : which == 1 ? c1 : which == 2 ? c2 : c3;
}

struct Dropout {
    uint32_t seed, layer, step, sample, limit; // limit 0: there is none
    double factor;
    NF_DEVICE bool keeps(uint32_t of_sample, int64_t element) const {
        return random_word(seed, layer, step, of_sample, element) >> 8 >= limit;
    }
};

struct DropoutArgs {
    const void *x, *residual; // residual may be null
    void *out;
    Dropout dropout;
    int64_t samples, elements; // of all samples together
    const int64_t *starts;     // (samples + 1), or null
};
template <class T> NF_KERNEL(kElementThreads) dropout(NF_ARGS DropoutArgs args) {
    typedef Acc<T> A;
    const T *x = static_cast<const T *>(args.x), *residual = static_cast<const T *>(args.residual);
    const A factor = A(args.dropout.factor);
    const int64_t each = args.elements / args.samples;
    for (int64_t i = block() * kElementThreads + thread(); i < args.elements; i += blocks() * kElementThreads) {
        int64_t sample = 0, start = 0;
        if (!args.starts) {
            sample = i / each;
            start = sample * each;
        } else {
            int64_t high = args.samples; // the last sample that begins at or before i
            while (high - sample > 1) {
                const int64_t middle = (sample + high) / 2;
                if (args.starts[middle] <= i)
                    sample = middle;
                else
                    high = middle;
            }
            start = args.starts[sample];
        }
        const bool kept = args.dropout.keeps(args.dropout.sample + uint32_t(sample), i - start);
        A y = kept ? load(x, i) * factor : A(0);
        if (residual)
            y += load(residual, i);
        store(static_cast<T *>(args.out), i, y);
    }
}

} // namespace nf::cuda
