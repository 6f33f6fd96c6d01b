// Matrix registers, where the level has them.
#pragma once
#include "simd/vec.hpp"

#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace nf::NUMFORMER_LEVEL {

// AMX (Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3): a matrix register has 16 rows
// of 64 bytes. TDPBF16PS adds to 16 x 16 sums the products of 16 rows of 16 pairs with 16 steps of 16 columns, B's
// pairs lying as in panels: the sums over first and over second elements, each a chain in the order of depth, are added
// to each other and then to C; subnormal numbers count as 0. It takes 16 cycles, and 2 x 2 registers of sums load no
// more than two cache lines a cycle.
#if defined(__AMX_BF16__)
// Shapes of all matrix registers, set for the time of a scope: threads outside should not carry their state around.
struct MatrixRegisters {
    MatrixRegisters() {
        struct alignas(64) Shapes {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        };
        static constexpr Shapes shapes = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
        _tile_loadconfig(&shapes);
    }
    ~MatrixRegisters() { _tile_release(); }
    MatrixRegisters(const MatrixRegisters &) = delete;
    MatrixRegisters &operator=(const MatrixRegisters &) = delete;
};

// c (16 ROWS x 16 COLUMNS, all of them written) = or, continuing the chain, += a @ b. Rows of a hold zeros behind the
// depth up to a multiple of 16 steps.
template <int ROW_STRIDE, int ROWS, int COLUMNS>
static void multiply_matrices(int64_t depth, const bf16_pair *a, const bf16_pair *b, int64_t b_row, float *c,
                              int64_t c_row, bool add) {
    constexpr int64_t kSize = 16, kARow = ROW_STRIDE * sizeof(bf16_pair), kBRest = COLUMNS * kSize;
    const int64_t b_bytes = b_row * int64_t(sizeof(bf16_pair)), c_bytes = c_row * int64_t(sizeof(float));
    float *const below = c + kSize * c_row;
    // GCC's intrinsics do not say that they read memory.
    asm volatile("" ::: "memory");
    if (add) {
        _tile_loadd(0, c, c_bytes);
        if constexpr (COLUMNS == 2)
            _tile_loadd(1, c + kSize, c_bytes);
        if constexpr (ROWS == 2)
            _tile_loadd(2, below, c_bytes);
        if constexpr (ROWS == 2 && COLUMNS == 2)
            _tile_loadd(3, below + kSize, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    auto add_step = [&](const bf16_pair *left, const bf16_pair *right, int64_t right_bytes)
                        __attribute__((always_inline)) {
                            _tile_loadd(4, left, kARow);
                            _tile_loadd(6, right, right_bytes);
                            _tile_dpbf16ps(0, 4, 6);
                            if constexpr (COLUMNS == 2) {
                                _tile_loadd(7, right + kSize, right_bytes);
                                _tile_dpbf16ps(1, 4, 7);
                            }
                            if constexpr (ROWS == 2) {
                                _tile_loadd(5, left + kSize * ROW_STRIDE, kARow);
                                _tile_dpbf16ps(2, 5, 6);
                                if constexpr (COLUMNS == 2)
                                    _tile_dpbf16ps(3, 5, 7);
                            }
                        };
    int64_t k = 0;
    for (; k + kSize <= depth; k += kSize)
        add_step(a + k, b + k * b_row, b_bytes);
    if (k < depth) { // what follows in b's memory may be anything, NaN too
        alignas(64) bf16_pair rest[kSize * kBRest];
        memset(static_cast<void *>(rest), 0, sizeof rest);
        for (int64_t step = k; step < depth; ++step)
            memcpy(rest + (step - k) * kBRest, b + step * b_row, kBRest * sizeof(bf16_pair));
        asm volatile("" ::: "memory");
        add_step(a + k, rest, kBRest * sizeof(bf16_pair));
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (COLUMNS == 2)
        _tile_stored(1, c + kSize, c_bytes);
    if constexpr (ROWS == 2)
        _tile_stored(2, below, c_bytes);
    if constexpr (ROWS == 2 && COLUMNS == 2)
        _tile_stored(3, below + kSize, c_bytes);
    asm volatile("" ::: "memory");
}
#endif

} // namespace nf::NUMFORMER_LEVEL
