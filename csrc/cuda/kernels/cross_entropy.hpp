// Cross-entropy with log-softmax inside and label smoothing s, as csrc/kernels/cross_entropy.cpp has it:
//
//   lse = log sum_j exp(x_j),  loss = lse - (1 - s) x_target - s mean(x)
//   dx_j = dloss / count (exp(x_j - lse) - (1 - s) [j = target] - s / n)
//
// Ignored rows: loss 0, gradient 0. A target that is no class gives NaN, because a kernel cannot raise.
#pragma once
#include "cuda/kernels/packs.hpp"
#include "cuda/kernels/rows.hpp"

namespace nf::cuda {

struct Integers {
    const void *data;
    bool wide; // int64
    NF_DEVICE int64_t operator[](int64_t i) const {
        return wide ? static_cast<const int64_t *>(data)[i] : int64_t(static_cast<const int32_t *>(data)[i]);
    }
};

struct CrossEntropyArgs {
    const void *logits;
    Integers targets;
    void *losses, *lse; // (rows,); the forward writes both, the backward reads lse
    const void *dloss;  // one a row or, with dloss_stride 0, one for all; null: `given`
    int64_t dloss_stride;
    double given;
    const double *count; // what gradients are divided by
    void *out;
    int64_t rows, columns, ignore_index;
    int64_t logits_row, out_row; // from one row to the next
    double label_smoothing;
    bool is_aligned; // all rows, of logits and out
};

// Whole packs of a row, then the elements that are left, each by one of the threads that share it.
template <int kCount, class A, bool kLong, class Whole, class One>
NF_DEVICE void over_row(const RowGroup<A, kLong> &group, int64_t columns, Whole whole, One one) {
    const int64_t packed = columns / kCount * kCount;
    for (int64_t j = group.place() * kCount; j < packed; j += group.size() * kCount)
        whole(j);
    for (int64_t j = packed + group.place(); j < columns; j += group.size())
        one(j);
}

template <class A> struct RowLoss {
    A lse, loss;
};

template <class A, bool kLong, class X>
NF_DEVICE RowLoss<A> loss_of_row(const RowGroup<A, kLong> &group, const X *x, const CrossEntropyArgs &args,
                                 int64_t target) {
    const int64_t columns = args.columns;
    constexpr int kCount = kPack<X>;
    // In one pass, for rows of a large vocabulary come from memory each time: a thread's sum is that of exponentials
    // below its greatest value yet.
    A top = -infinity<A>(), sum = 0;
    const auto rise = [&](A value) {
        if (value > top) {
            sum *= exp_of(top - value);
            top = value;
        }
        return top > -infinity<A>() ? top : A(0);
    };
    over_row<kCount>(
        group, columns,
        [&](int64_t j) {
            A values[kCount], greatest = -infinity<A>();
            load_pack(x + j, args.is_aligned, values);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                greatest = larger_of(greatest, values[i]);
            const A base = rise(greatest);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                sum += exp_of(values[i] - base);
        },
        [&](int64_t j) {
            const A value = A(load(x, j));
            sum += exp_of(value - rise(value));
        });
    const A own = top;
    top = group.max(top);
    if (own > -infinity<A>())
        sum *= exp_of(own - top);
    const double log_sum = log(double(group.sum(sum)));
    A below = 0;
    if (args.label_smoothing != 0) {
        over_row<kCount>(
            group, columns,
            [&](int64_t j) {
                A values[kCount];
                load_pack(x + j, args.is_aligned, values);
                NF_UNROLL
                for (int i = 0; i < kCount; ++i)
                    below += top - values[i];
            },
            [&](int64_t j) { below += top - A(load(x, j)); });
        below = group.sum(below);
    }
    RowLoss<A> result{A(double(top) + log_sum), A(0)};
    if (target == args.ignore_index)
        return result;
    if (target < 0 || target >= columns) {
        result.loss = not_a_number<A>();
        return result;
    }
    double loss = log_sum + (1 - args.label_smoothing) * (double(top) - double(load(x, target)));
    if (args.label_smoothing != 0)
        loss += args.label_smoothing * double(below) / double(columns);
    result.loss = A(loss);
    return result;
}

// out may be x, where the types are one.
template <class A, bool kLong, class X, class T>
NF_DEVICE void gradient_of_row(const RowGroup<A, kLong> &group, T *out, const X *x, const CrossEntropyArgs &args,
                               int64_t target, A lse, A factor) {
    const A uniform = A(args.label_smoothing / double(args.columns)), at_target = A(1 - args.label_smoothing);
    const bool counts = target != args.ignore_index;
    const A base = target < 0 || target >= args.columns ? not_a_number<A>() : A(0);
    const auto gradient = [&](A value, int64_t j) {
        const A p = exp_of(value - lse) + base - uniform - (j == target ? at_target : A(0));
        return counts ? p * factor : A(0);
    };
    constexpr int kCount = kPack<X> > kPack<T> ? kPack<X> : kPack<T>;
    over_row<kCount>(
        group, args.columns,
        [&](int64_t j) {
            A values[kCount];
            load_pack(x + j, args.is_aligned, values);
            NF_UNROLL
            for (int i = 0; i < kCount; ++i)
                values[i] = gradient(values[i], j + i);
            store_pack(out + j, args.is_aligned, values);
        },
        [&](int64_t j) { store(out, j, gradient(A(load(x, j)), j)); });
}

template <class T, bool kLong> NF_KERNEL(kRowThreads) cross_entropy(NF_ARGS CrossEntropyArgs args) {
    typedef Acc<T> A;
    RowGroup<A, kLong> group;
    for (int64_t row = group.first_row(); row < args.rows; row += group.row_step()) {
        const T *x = static_cast<const T *>(args.logits) + row * args.logits_row;
        const RowLoss<A> result = loss_of_row<A, kLong>(group, x, args, args.targets[row]);
        if (group.place() == 0) {
            static_cast<A *>(args.lse)[row] = result.lse;
            static_cast<A *>(args.losses)[row] = result.loss;
        }
    }
}

template <class T, bool kLong> NF_KERNEL(kRowThreads) cross_entropy_backward(NF_ARGS CrossEntropyArgs args) {
    typedef Acc<T> A;
    RowGroup<A, kLong> group;
    for (int64_t row = group.first_row(); row < args.rows; row += group.row_step()) {
        const A dloss = static_cast<const A *>(args.dloss)[row * args.dloss_stride];
        gradient_of_row<A, kLong>(group, static_cast<T *>(args.out) + row * args.out_row,
                                  static_cast<const T *>(args.logits) + row * args.logits_row, args, args.targets[row],
                                  static_cast<const A *>(args.lse)[row], A(double(dloss) / *args.count));
    }
}

// Both, of logits that are there for a moment only; they are of A.
template <class A, class T, bool kLong> NF_KERNEL(kRowThreads) cross_entropy_gradient(NF_ARGS CrossEntropyArgs args) {
    RowGroup<A, kLong> group;
    for (int64_t row = group.first_row(); row < args.rows; row += group.row_step()) {
        const A *x = static_cast<const A *>(args.logits) + row * args.logits_row;
        const int64_t target = args.targets[row];
        const RowLoss<A> result = loss_of_row<A, kLong>(group, x, args, target);
        if (group.place() == 0)
            static_cast<A *>(args.losses)[row] = result.loss;
        group.meet(); // all have read x[target]: out may be x
        gradient_of_row<A, kLong>(group, static_cast<T *>(args.out) + row * args.out_row, x, args, target, result.lse,
                                  A(args.given / *args.count));
    }
}

// One block: how many targets count, at least 1.
constexpr int kReduceThreads = 256;
struct CountArgs {
    Integers targets;
    double *count;
    int64_t rows, ignore_index;
    bool mean; // else the count is 1
};
NF_KERNEL(kReduceThreads) count_targets(NF_ARGS CountArgs args) {
    Shared<double> scratch = SharedMemory().take<double>(kReduceThreads / kWarp);
    double count = 0;
    if (args.mean)
        for (int64_t i = thread(); i < args.rows; i += kReduceThreads)
            count += args.targets[i] != args.ignore_index ? 1 : 0;
    count = block_sum(count, scratch);
    if (thread() == 0)
        *args.count = count > 1 ? count : 1;
}

// One block: the sum of the losses of all rows over the number of those that count.
struct ReduceLossArgs {
    const void *losses;
    Integers targets;
    void *loss;
    int64_t rows, ignore_index;
    bool mean;
};
template <class A> NF_KERNEL(kReduceThreads) reduce_loss(NF_ARGS ReduceLossArgs args) {
    Shared<double> scratch = SharedMemory().take<double>(kReduceThreads / kWarp);
    double sum = 0, count = 0;
    for (int64_t i = thread(); i < args.rows; i += kReduceThreads) {
        sum += double(static_cast<const A *>(args.losses)[i]);
        count += args.targets[i] != args.ignore_index ? 1 : 0;
    }
    sum = block_sum(sum, scratch);
    count = block_sum(count, scratch);
    if (thread() == 0)
        *static_cast<A *>(args.loss) = A(args.mean && count > 0 ? sum / count : sum);
}

} // namespace nf::cuda
