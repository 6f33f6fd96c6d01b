// dropout: y = x kept ? x / (1 - p) : 0, + residual. Element e of sample s is kept if the upper 24 bits of word e % 4
// of Philox4x32-10 with key (seed, layer) and counter (e / 4, s, step, 0) are at least p 2^24.
#include "kernels/random.hpp"
#include "kernels/rows.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// Threads divide the elements anywhere: the words of a group that two of them share are made twice.
template <class T> bool dropout(const DropoutArgs &args) {
    typedef Acc<T> A;
    const RoundKeys keys = round_keys(args.seed, args.layer);
    const A factor = A(args.factor);
    const int64_t each = args.elements / args.samples;
    auto start = [&](int64_t sample) { return args.starts ? args.starts[sample] : sample * each; };
    parallel_ranges(args.elements, kHeavyGrain, [&](int64_t begin, int64_t end) {
        alignas(kVectorBytes) uint32_t words[kWords + kLanes<A>]; // the last ones are loaded by a whole register
        int64_t sample = args.starts ? 0 : begin / each;
        for (int64_t at = begin; at < end; ++sample) {
            const int64_t origin = start(sample), stop = smaller(end, start(sample + 1));
            while (at < stop) {
                const int64_t group = (at - origin) / kWords, skipped = (at - origin) % kWords;
                random_words(keys, group * kCounters, uint32_t(args.sample + sample), args.step, words);
                const int64_t count = smaller(kWords - skipped, stop - at);
                const T *x = static_cast<const T *>(args.x) + at;
                const T *residual = args.residual ? static_cast<const T *>(args.residual) + at : nullptr;
                T *out = static_cast<T *>(args.out) + at;
                for_each_vector<A>(count, [&](int64_t j, int n) {
                    Vec<A> y = kept(A(0), words + skipped + j, args.limit) ? load_some(x + j, n) * factor : Vec<A>{};
                    if (residual)
                        y += load_some(residual + j, n);
                    store_some(out + j, y, n);
                });
                at += count;
            }
        }
    });
    return true;
}

} // namespace

void fill_dropout(Kernels &table) { NF_FILL(dropout, dropout); }

} // namespace nf::NUMFORMER_LEVEL
