// The random words of dropout: Philox4x32-10 (core/philox.hpp has the scalar form) on as many counters at once as there
// are 64-bit lanes. The generator is what dropout costs: 10 rounds of two 32 x 32 -> 64 bit products for four words. A
// lane's upper half may hold anything, because a product reads the lower halves only.
#pragma once
#include "kernels/tile.hpp"

namespace nf::NUMFORMER_LEVEL {

typedef VecOf<double>::bits Wide;
constexpr int kCounters = kLanes<double>;
constexpr int kWords = 4 * kCounters;

struct RoundKeys {
    uint64_t first[10], second[10];
};
NF_INLINE RoundKeys round_keys(uint32_t seed, uint32_t layer) {
    RoundKeys keys;
    for (uint32_t round = 0; round < 10; ++round) {
        keys.first[round] = uint32_t(seed + round * 0x9E3779B9u);
        keys.second[round] = uint32_t(layer + round * 0xBB67AE85u);
    }
    return keys;
}

// Words of counters (block, sample, step, block >> 32), (block + 1, ...), ... in the order of the elements.
NF_INLINE void random_words(const RoundKeys &keys, int64_t block, uint32_t sample, uint32_t step, uint32_t *words) {
    Wide c0 = (Wide)iota<double>() + uint64_t(block), c1 = Wide{} + uint64_t(sample), c2 = Wide{} + uint64_t(step),
         c3 = c0 >> 32;
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

} // namespace nf::NUMFORMER_LEVEL
