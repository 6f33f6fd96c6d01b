#include "cuda/kernels/embedding.hpp"

#include "cuda/launchers/grids.hpp"
#include "cuda/launchers/sort.hpp"

namespace nf::cuda {
namespace {

Integers integers(const Array &array) { return {array.data, array.dtype == DType::i64}; }

bool rows_are_aligned(const Array &x) { return are_aligned(x.data) && x.row() * kItemSize[int(x.dtype)] % 16 == 0; }

CrossEntropyArgs cross_entropy_args(const CrossEntropyInputs &in) {
    CrossEntropyArgs args{};
    args.logits = in.logits.data;
    args.targets = integers(in.targets);
    args.rows = in.logits.rows();
    args.columns = in.logits.columns();
    args.logits_row = in.logits.row();
    args.is_aligned = rows_are_aligned(in.logits);
    args.ignore_index = in.ignore_index;
    args.label_smoothing = in.label_smoothing;
    return args;
}

constexpr int64_t kReduceShared = shared_bytes<double>(kReduceThreads / kWarp);

} // namespace

void count_targets(const Array &count, const Array &targets, int64_t ignore_index, bool mean, Stream stream) {
    const CountArgs args{integers(targets), static_cast<double *>(count.data), targets.size(), ignore_index, mean};
    launch("count_targets", 1, kReduceThreads, kReduceShared, stream, cuda::count_targets, args);
}

void cross_entropy(const CrossEntropyInputs &in, const MaybeArray &loss, const Array &losses, const Array &lse,
                   bool mean, Stream stream) {
    CrossEntropyArgs args = cross_entropy_args(in);
    args.losses = losses.data;
    args.lse = lse.data;
    with_float(in.logits.dtype, [&](auto t) {
        typedef decltype(t) T;
        with_length(args.columns, [&](auto is_long) {
            constexpr bool kLong = decltype(is_long)::value;
            launch("cross_entropy", row_blocks(args.rows, kLong), kRowThreads, row_shared<Acc<T>, kLong>(), stream,
                   cuda::cross_entropy<T, kLong>, args);
        });
        if (loss)
            launch("cross_entropy", 1, kReduceThreads, kReduceShared, stream, reduce_loss<Acc<T>>,
                   ReduceLossArgs{losses.data, args.targets, loss->data, args.rows, args.ignore_index, mean});
    });
}

void cross_entropy_backward(const CrossEntropyInputs &in, const Array &dlogits, const Array &dloss, const Array &lse,
                            bool mean, const Allocate &allocate, Stream stream) {
    CrossEntropyArgs args = cross_entropy_args(in);
    args.lse = lse.data;
    args.dloss = dloss.data;
    args.dloss_stride = dloss.ndim() == 0 ? 0 : 1;
    args.out = dlogits.data;
    args.out_row = dlogits.row();
    args.is_aligned = args.is_aligned && rows_are_aligned(dlogits);
    if (args.rows == 0)
        return;
    double *count = static_cast<double *>(allocate(int64_t(sizeof(double))));
    count_targets({count, DType::f64, {1}, {1}}, in.targets, in.ignore_index, mean, stream);
    args.count = count;
    with_float(in.logits.dtype, [&](auto t) {
        typedef decltype(t) T;
        with_length(args.columns, [&](auto is_long) {
            constexpr bool kLong = decltype(is_long)::value;
            launch("cross_entropy_backward", row_blocks(args.rows, kLong), kRowThreads, row_shared<Acc<T>, kLong>(),
                   stream, cuda::cross_entropy_backward<T, kLong>, args);
        });
    });
}

void cross_entropy_gradient(const CrossEntropyInputs &in, const Array &losses, const Array &dlogits, const Array &count,
                            double dloss, Stream stream) {
    CrossEntropyArgs args = cross_entropy_args(in);
    args.losses = losses.data;
    args.out = dlogits.data;
    args.out_row = dlogits.row();
    args.is_aligned = args.is_aligned && rows_are_aligned(dlogits);
    args.count = static_cast<const double *>(count.data);
    args.given = dloss;
    with_float(dlogits.dtype, [&](auto t) {
        typedef decltype(t) T;
        with_length(args.columns, [&](auto is_long) {
            constexpr bool kLong = decltype(is_long)::value;
            launch("cross_entropy_gradient", row_blocks(args.rows, kLong), kRowThreads, row_shared<Acc<T>, kLong>(),
                   stream, cuda::cross_entropy_gradient<Acc<T>, T, kLong>, args);
        });
    });
}

void embedding(const Array &out, const Array &weight, const Array &ids, Stream stream) {
    const EmbeddingArgs args{weight.data, integers(ids), out.data, ids.size(), weight.shape[0], weight.shape[1]};
    with_float(weight.dtype, [&](auto t) {
        launch("embedding", blocks_for(args.count * args.columns, kEmbeddingThreads), kEmbeddingThreads, 0, stream,
               cuda::embedding<decltype(t)>, args);
    });
}

void embedding_backward(const Array &dweight, const Array &dy, const Array &ids, bool accumulate,
                        const Allocate &allocate, Stream stream) {
    const char *name = "embedding_backward";
    const int64_t count = ids.size(), vocabulary = dweight.shape[0], columns = dweight.shape[1];
    if (!accumulate)
        fill_zeros(name, dweight.data, dweight.size() * kItemSize[int(dweight.dtype)], stream);
    if (count == 0 || columns == 0)
        return;
    const KeysArgs keys{integers(ids), static_cast<uint32_t *>(allocate(count * 4)),
                        static_cast<uint32_t *>(allocate(count * 4)), count, vocabulary};
    launch(name, blocks_for(count, kEmbeddingThreads), kEmbeddingThreads, 0, stream, embedding_keys, keys);
    const Sorted sorted = sort_pairs(name, keys.keys, keys.order, count, uint32_t(vocabulary), allocate, stream);
    const EmbeddingBackwardArgs args{sorted.keys, sorted.values, dy.data, dweight.data,
                                     count,       vocabulary,    columns, accumulate};
    with_wide(dy.dtype, dweight.dtype, [&](auto t, auto o) {
        launch(name, count * ceil_div(columns, kEmbeddingThreads), kEmbeddingThreads, 0, stream,
               cuda::embedding_backward<decltype(t), decltype(o)>, args);
    });
}

} // namespace nf::cuda
