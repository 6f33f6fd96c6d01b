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

template <class T> bool cross_entropy(const CrossEntropyArgs &args) {
    typedef Acc<T> A;
    const int64_t columns = args.columns;
    parallel_ranges(args.rows, row_grain(columns, kHeavyGrain), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T *x = static_cast<const T *>(args.logits) + row * columns;
            const A top = row_max<A>(columns, x);
            const double sum = row_sum<A>(columns, [&](int64_t j, int n) { return exp(load_some(x + j, n) - top); });
            const double log_sum = __builtin_log(sum);
            static_cast<A *>(args.lse)[row] = A(double(top) + log_sum);
            const int64_t target = integer_at(args.targets, row);
            double loss = 0;
            if (target != args.ignore_index) {
                const double s = args.label_smoothing;
                loss = log_sum + (1 - s) * (double(top) - double(load_one(x + target)));
                if (s != 0)
                    loss += s * row_sum<A>(columns, [&](int64_t j, int n) { return top - load_some(x + j, n); }) /
                            double(columns);
            }
            static_cast<A *>(args.loss)[row] = A(loss);
        }
    });
    return true;
}

template <class T> bool cross_entropy_backward(const CrossEntropyArgs &args) {
    typedef Acc<T> A;
    const int64_t columns = args.columns;
    const A uniform = A(args.label_smoothing / double(columns)), at_target = A(1 - args.label_smoothing);
    parallel_ranges(args.rows, row_grain(columns, kHeavyGrain), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T *x = static_cast<const T *>(args.logits) + row * columns;
            T *dx = static_cast<T *>(args.out) + row * columns;
            const int64_t target = integer_at(args.targets, row);
            if (target == args.ignore_index) {
                memset(static_cast<void *>(dx), 0, size_t(columns) * sizeof(T));
                continue;
            }
            const A lse = static_cast<const A *>(args.lse)[row];
            const A factor = A(double(static_cast<const A *>(args.dloss)[row * args.dloss_stride]) * args.weight);
            const Vec<A> target_logit = broadcast(A(load_one(x + target))); // before dx, which may be x, is written
            for_each_vector<A>(columns, [&](int64_t j, int n) {
                store_some(dx + j, (exp(load_some(x + j, n) - lse) - uniform) * factor, n);
            });
            store_n(dx + target, (exp(target_logit - lse) - uniform - at_target) * factor, 1);
        }
    });
    return true;
}

} // namespace

void fill_cross_entropy(Kernels &table) {
    NF_FILL(cross_entropy, cross_entropy);
    NF_FILL(cross_entropy_backward, cross_entropy_backward);
}

} // namespace nf::NUMFORMER_LEVEL
