// add: out = a + b, b repeated.   cast: out = scale x in another type.   sum_rows: out_j (+)= sum_i x_ij, in chunks of
// kChunkRows rows whose sums are added in order. round_sums: out (+)= sums, rounded once.
#include "kernels/rows.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

template <class T, class B> void add_of(const AddArgs &args) {
    typedef Acc<T> A;
    const T *a = static_cast<const T *>(args.a);
    const B *b = static_cast<const B *>(args.b);
    T *out = static_cast<T *>(args.out);
    parallel_ranges(args.count, kGrain, [&](int64_t begin, int64_t end) {
        while (begin < end) { // up to where b begins again
            const int64_t place = begin % args.period, length = smaller(end - begin, args.period - place);
            for_each_vector<A>(length, [&](int64_t i, int n) {
                store_some(out + begin + i, load_some(a + begin + i, n) + load_some(b + place + i, n), n);
            });
            begin += length;
        }
    });
}

template <class T> bool add(const AddArgs &args) {
    if (sizeof(T) == 2 && args.b_type == DType::f32)
        add_of<T, Acc<T>>(args);
    else
        add_of<T, T>(args);
    return true;
}

template <class T, class O> void cast_to(const CastArgs &args) {
    typedef Acc<T> A;
    const T *x = static_cast<const T *>(args.x);
    O *out = static_cast<O *>(args.out);
    const A scale = A(args.scale);
    parallel_ranges(args.count, kGrain, [&](int64_t begin, int64_t end) {
        if constexpr (std::is_same_v<A, Acc<O>>)
            for_each_vector<A>(end - begin, [&](int64_t i, int n) {
                store_some(out + begin + i, load_some(x + begin + i, n) * scale, n);
            });
        else // to and from double: other numbers of lanes
            for (int64_t i = begin; i < end; ++i)
                store_one(out + i, Acc<O>(A(load_one(x + i)) * scale));
    });
}

template <class T> bool cast(const CastArgs &args) {
    switch (args.out_type) {
    case DType::f64:
        cast_to<T, double>(args);
        break;
    case DType::f16:
        cast_to<T, f16>(args);
        break;
    case DType::bf16:
        cast_to<T, bf16>(args);
        break;
    default:
        cast_to<T, float>(args);
    }
    return true;
}

template <class T> bool sum_rows(const SumRowsArgs &args) {
    typedef Acc<T> A;
    constexpr int64_t kStrip = 1024; // columns: their sums stay in L1
    const int64_t columns = args.columns;
    const int64_t chunks = ceil_div(args.rows, kChunkRows), strips = ceil_div(columns, kStrip);
    Scratch<A> partial(chunks * columns);
    if (!partial)
        return false;
    tasks_of_work(chunks * strips, args.rows * columns, [&](int64_t task) {
        const int64_t chunk = task / strips, first = task % strips * kStrip;
        const int64_t width = smaller(kStrip, columns - first), last = smaller(args.rows, (chunk + 1) * kChunkRows);
        A *sum = partial.data + chunk * columns + first;
        memset(static_cast<void *>(sum), 0, size_t(width) * sizeof(A));
        for (int64_t row = chunk * kChunkRows; row < last; ++row) {
            const T *x = static_cast<const T *>(args.x) + row * columns + first;
            for_each_vector<A>(
                width, [&](int64_t j, int n) { store_some(sum + j, load_some(sum + j, n) + load_some(x + j, n), n); });
        }
    });
    if (sizeof(T) == 2 && args.out_type == DType::f32)
        add_partials<A>(chunks, columns, partial.data, columns, static_cast<A *>(args.out), args.accumulate);
    else
        add_partials<A>(chunks, columns, partial.data, columns, static_cast<T *>(args.out), args.accumulate);
    return true;
}

template <class T> bool round_sums(const RoundSumsArgs &args) {
    T *out = static_cast<T *>(args.out);
    parallel_ranges(args.count, kGrain, [&](int64_t begin, int64_t end) {
        for_each_vector<float>(end - begin, [&](int64_t i, int n) {
            Vec<float> sum = load_some(args.sums + begin + i, n);
            if (args.accumulate)
                sum += load_some(out + begin + i, n);
            store_some(out + begin + i, sum, n);
        });
    });
    return true;
}

} // namespace

void fill_elementwise(Kernels &table) {
    NF_FILL(add, add);
    NF_FILL(cast, cast);
    NF_FILL(sum_rows, sum_rows);
    table.round_sums[int(DType::f16)] = round_sums<f16>;
    table.round_sums[int(DType::bf16)] = round_sums<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
