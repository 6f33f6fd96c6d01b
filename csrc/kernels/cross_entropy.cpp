// Cross-entropy with log-softmax inside, label smoothing s towards the uniform distribution (Szegedy et al., 2016):
//
//   lse = log sum_j exp(x_j),  loss = lse - (1 - s) x_target - s mean(x)
//   dx_j = dloss weight (exp(x_j - lse) - (1 - s) [j = target] - s / n)
//
// The probabilities are never stored. A row is read from memory once; the loss is formed from differences to the row's
// maximum, so that large logits cost it no digits. Ignored rows: loss 0, gradient 0.
#include "kernels/rows.hpp"
#include "simd/math.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

template <class A> struct RowLoss {
    A lse, loss;
};

// target < 0: the row does not count.
template <class A, class T>
NF_INLINE RowLoss<A> loss_of_row(const T *x, int64_t columns, int64_t target, double smoothing) {
    const A top = row_max<A>(columns, x);
    const double sum = row_sum<A>(columns, [&](int64_t j, int n) { return exp(load_some(x + j, n) - top); });
    const double log_sum = __builtin_log(sum);
    double loss = 0;
    if (target >= 0) {
        loss = log_sum + (1 - smoothing) * (double(top) - double(load_one(x + target)));
        if (smoothing != 0)
            loss += smoothing * row_sum<A>(columns, [&](int64_t j, int n) { return top - load_some(x + j, n); }) /
                    double(columns);
    }
    return {A(double(top) + log_sum), A(loss)};
}

// dx may be x.
template <class A, class X, class T>
NF_INLINE void gradient_of_row(T *dx, const X *x, int64_t columns, int64_t target, A lse, double smoothing, A factor) {
    const A uniform = A(smoothing / double(columns)), at_target = A(1 - smoothing);
    const Vec<A> target_logit = broadcast(A(load_one(x + target))); // before dx, which may be x, is written
    for_each_vector<A>(
        columns, [&](int64_t j, int n) { store_some(dx + j, (exp(load_some(x + j, n) - lse) - uniform) * factor, n); });
    store_n(dx + target, (exp(target_logit - lse) - uniform - at_target) * factor, 1);
}

template <class T> bool cross_entropy(const CrossEntropyArgs &args) {
    typedef Acc<T> A;
    const int64_t columns = args.columns;
    parallel_ranges(args.rows, row_grain(columns, kHeavyGrain), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t target = integer_at(args.targets, row);
            const RowLoss<A> result = loss_of_row<A>(static_cast<const T *>(args.logits) + row * columns, columns,
                                                     target == args.ignore_index ? -1 : target, args.label_smoothing);
            static_cast<A *>(args.lse)[row] = result.lse;
            static_cast<A *>(args.loss)[row] = result.loss;
        }
    });
    return true;
}

template <class T> bool cross_entropy_backward(const CrossEntropyArgs &args) {
    typedef Acc<T> A;
    const int64_t columns = args.columns;
    parallel_ranges(args.rows, row_grain(columns, kHeavyGrain), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            T *dx = static_cast<T *>(args.out) + row * columns;
            const int64_t target = integer_at(args.targets, row);
            if (target == args.ignore_index) {
                memset(static_cast<void *>(dx), 0, size_t(columns) * sizeof(T));
                continue;
            }
            gradient_of_row<A>(dx, static_cast<const T *>(args.logits) + row * columns, columns, target,
                               static_cast<const A *>(args.lse)[row], args.label_smoothing,
                               A(double(static_cast<const A *>(args.dloss)[row * args.dloss_stride]) * args.weight));
        }
    });
    return true;
}

// Both for each row in turn, while it is in the second-level cache.
template <class T> bool cross_entropy_gradient(const CrossEntropyGradientArgs &args) {
    typedef Acc<T> A;
    const int64_t columns = args.columns;
    parallel_ranges(args.rows, row_grain(columns, kHeavyGrain), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const A *x = static_cast<const A *>(args.logits) + row * columns;
            const RowLoss<A> result = loss_of_row<A>(x, columns, args.targets[row], args.label_smoothing);
            static_cast<A *>(args.loss)[row] = result.loss;
            gradient_of_row<A>(static_cast<T *>(args.out) + row * columns, x, columns, args.targets[row], result.lse,
                               args.label_smoothing, A(args.dloss));
        }
    });
    return true;
}

} // namespace

void fill_cross_entropy(Kernels &table) {
    NF_FILL(cross_entropy, cross_entropy);
    NF_FILL(cross_entropy_backward, cross_entropy_backward);
    NF_FILL(cross_entropy_gradient, cross_entropy_gradient);
}

} // namespace nf::NUMFORMER_LEVEL
