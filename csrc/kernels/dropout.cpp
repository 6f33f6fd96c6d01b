// dropout: y = x kept ? x / (1 - p) : 0, + residual. Element e of sample s is kept if the upper 24 bits of word e % 4
// of Philox4x32-10 with key (seed, layer) and counter (e / 4, s, step, 0) are at least p 2^24.
#include "kernels/random.hpp"
#include "kernels/rows.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

template <class T> bool dropout(const DropoutArgs &args) {
    typedef Acc<T> A;
    const RoundKeys keys = round_keys(args.seed, args.layer);
    const A factor = A(args.factor);
    const int64_t groups = ceil_div(args.elements, kWords); // of a sample
    parallel_ranges(args.samples * groups, larger(1, kHeavyGrain / kWords), [&](int64_t begin, int64_t end) {
        alignas(kVectorBytes) uint32_t words[kWords];
        for (int64_t i = begin; i < end; ++i) {
            const int64_t sample = i / groups, group = i % groups, first = group * kWords;
            random_words(keys, group * kCounters, uint32_t(args.sample + sample), args.step, words);
            const int64_t at = sample * args.elements + first;
            const T *x = static_cast<const T *>(args.x) + at;
            const T *residual = args.residual ? static_cast<const T *>(args.residual) + at : nullptr;
            T *out = static_cast<T *>(args.out) + at;
            for_each_vector<A>(smaller(kWords, args.elements - first), [&](int64_t j, int n) {
                Vec<A> y = kept(A(0), words + j, args.limit) ? load_some(x + j, n) * factor : Vec<A>{};
                if (residual)
                    y += load_some(residual + j, n);
                store_some(out + j, y, n);
            });
        }
    });
    return true;
}

} // namespace

void fill_dropout(Kernels &table) { NF_FILL(dropout, dropout); }

} // namespace nf::NUMFORMER_LEVEL
