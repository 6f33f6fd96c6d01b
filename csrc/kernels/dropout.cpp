// dropout: y = x kept ? x / (1 - p) : 0, + residual. Element e of sample s is kept if the upper 24 bits of word e % 4
// of Philox4x32-10 with key (seed, layer) and counter (e / 4, s, step, 0) are at least p 2^24 (core/philox.hpp has the
// scalar form).
//
// The generator is what costs: 10 rounds of two 32 x 32 -> 64 bit products for four words. It runs on as many counters
// at once as there are 64-bit lanes; a lane's upper half may hold anything, because a product reads the lower halves
// only.
#include "kernels/rows.hpp"
#include "kernels/tile.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

typedef VecOf<double>::bits Wide;
constexpr int kCounters = kLanes<double>;
constexpr int kWords = 4 * kCounters;

struct Keys {
    uint64_t first[10], second[10];
    Keys(uint32_t seed, uint32_t layer) {
        for (uint32_t round = 0; round < 10; ++round) {
            first[round] = uint32_t(seed + round * 0x9E3779B9u);
            second[round] = uint32_t(layer + round * 0xBB67AE85u);
        }
    }
};

// Words of counters (block, sample, step, 0), (block + 1, ...), ... in the order of the elements.
NF_INLINE void random_words(const Keys &keys, uint32_t block, uint32_t sample, uint32_t step, uint32_t *words) {
    Wide c0 = (Wide)iota<double>() + uint64_t(block), c1 = Wide{} + uint64_t(sample), c2 = Wide{} + uint64_t(step),
         c3 = {};
    const Wide m0 = Wide{} + uint64_t(0xD2511F53u), m1 = Wide{} + uint64_t(0xCD9E8D57u);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const Wide p0 = multiply_lower_halves(c0, m0), p1 = multiply_lower_halves(c2, m1);
        c0 = (p1 >> 32) ^ c1 ^ keys.first[round];
        c2 = (p0 >> 32) ^ c3 ^ keys.second[round];
        c1 = p1;
        c3 = p0;
    }
    // Lane i holds words 4i ... 4i + 3: join them in pairs, then interleave the pairs.
    const Wide lower = (c0 & 0xffffffffu) | (c1 << 32), upper = (c2 & 0xffffffffu) | (c3 << 32);
    const Vec<double> low = Interleave<double>::low((Vec<double>)lower, (Vec<double>)upper);
    const Vec<double> high = Interleave<double>::high((Vec<double>)lower, (Vec<double>)upper);
    memcpy(words, &low, sizeof low);
    memcpy(words + 2 * kCounters, &high, sizeof high);
}

// All bits set in the lanes whose word is kept.
NF_INLINE IntVec<float> kept(float, const uint32_t *words, uint32_t limit) {
    BitsVec w;
    memcpy(&w, words, sizeof w);
    return (IntVec<float>)((IntVec<float>)(w >> 8) >= int32_t(limit));
}
NF_INLINE IntVec<double> kept(double, const uint32_t *words, uint32_t limit) {
    IntVec<double> w = {};
    for (int i = 0; i < kCounters; ++i)
        w[i] = int64_t(words[i] >> 8);
    return w >= int64_t(limit);
}

template <class T> bool dropout(const DropoutArgs &args) {
    typedef Acc<T> A;
    const Keys keys(args.seed, args.layer);
    const A factor = A(args.factor);
    const int64_t groups = ceil_div(args.elements, kWords); // of a sample
    parallel_ranges(args.samples * groups, larger(1, kHeavyGrain / kWords), [&](int64_t begin, int64_t end) {
        alignas(kVectorBytes) uint32_t words[kWords];
        for (int64_t i = begin; i < end; ++i) {
            const int64_t sample = i / groups, group = i % groups, first = group * kWords;
            random_words(keys, uint32_t(group * kCounters), uint32_t(args.sample + sample), args.step, words);
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
