// What this processor can do at most, for the shares that benchmarks state: loops that use nothing but registers
// (multiply-adds), and a plain read of memory by 16 streams.
#include "kernels/tile.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// `rounds` times 12 independent chains of multiply-adds, enough to hide a latency of 4 cycles on two units; twice as
// many would need more than 16 registers. Returns floating-point operations done.
//
// E is the type of operands; pairs of bfloat16 are products of 1 by about 0.
template <class E> double multiply_adds(int64_t rounds) {
    typedef Acc<E> A;
    constexpr int kChains = 12;
    Vec<A> chain[kChains];
    for (int i = 0; i < kChains; ++i)
        chain[i] = broadcast(A(i));
    Vec<E> factor, term;
    if constexpr (kElements<E> == 2)
        factor = term = broadcast(E{{0x3f80}, {0x0080}});
    else
        factor = broadcast(A(0.999)), term = broadcast(A(0.001));
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i)
            if constexpr (kElements<E> == 2)
                chain[i] = multiply_add<E>(factor, term, chain[i]);
            else
                chain[i] = fma(chain[i], factor, term);
    }
    Vec<A> sum = {};
    for (int i = 0; i < kChains; ++i)
        sum += chain[i];
    volatile A keep = reduce_add<A>(sum);
    (void)keep;
    return 2.0 * kElements<E> * kChains * kLanes<E> * double(rounds);
}

#if defined(__AMX_BF16__)
// The same of matrix registers, 2 x 2 of sums as multiply_matrices has them.
double multiply_adds_of_matrices(int64_t rounds) {
    const MatrixRegisters registers;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    return 2.0 * 4 * 16 * 16 * 32 * double(rounds);
}
#endif

// Sum of `count` floats read as 16 streams side by side; count a multiple of 16 vectors.
float read_streams(const float *x, int64_t count) {
    constexpr int kStreams = 16;
    const int64_t length = count / kStreams / kLanes<float> * kLanes<float>;
    Vec<float> sum[kStreams] = {};
    for (int64_t i = 0; i < length; i += kLanes<float>)
#pragma GCC unroll 16
        for (int s = 0; s < kStreams; ++s)
            sum[s] += load(x + s * length + i);
    for (int s = 1; s < kStreams; ++s)
        sum[0] += sum[s];
    return reduce_add<float>(sum[0]);
}

} // namespace

void fill_ceiling(Kernels &table) {
    for (auto &entry : table.multiply_adds)
        entry = multiply_adds<float>; // 16-bit types are widened
    table.multiply_adds[int(DType::f64)] = multiply_adds<double>;
#if defined(__AMX_BF16__)
    table.multiply_adds[int(DType::bf16)] = multiply_adds_of_matrices;
#elif defined(__AVX512BF16__)
    table.multiply_adds[int(DType::bf16)] = multiply_adds<bf16_pair>;
#endif
    table.read_streams = read_streams;
}

} // namespace nf::NUMFORMER_LEVEL
