// The device layer on the host; csrc/cuda/device.hpp says what each function does.
#pragma once
#include "core/dtype.hpp"
#include "host/fibres.hpp"

#include <cstring>
#include <string>
#include <type_traits>

#define NF_DEVICE inline
#define NF_HOST_DEVICE inline
#define NF_KERNEL(threads) static void
#define NF_KERNEL_FOR(threads, blocks) static void
#define NF_ARGS const
#define NF_UNROLL
#define NF_NO_UNROLL

namespace nf::cuda {

using host::block;
using host::blocks;
using host::thread;
using host::threads;

inline void barrier() { host::meet_block(false); }
inline bool barrier_any(bool condition) { return host::meet_block(condition); }

template <class V> V of_lane(const char *given, int lane) {
    V value;
    std::memcpy(&value, given + size_t(lane) * host::kExchange, sizeof value);
    return value;
}
template <class V> V shuffle(V value, int from) {
    if (from < 0 || from >= 32)
        host::fail("shuffle: the lane must be in [0, 32), got " + std::to_string(from));
    return of_lane<V>(host::meet_warp("shuffle", &value, sizeof value), from);
}
template <class V> V shuffle_xor(V value, int mask) {
    if (mask < 0 || mask >= 32)
        host::fail("shuffle_xor: the mask must be in [0, 32), got " + std::to_string(mask));
    return of_lane<V>(host::meet_warp("shuffle_xor", &value, sizeof value), (thread() % 32) ^ mask);
}
inline void warp_barrier() { host::meet_warp("warp_barrier", nullptr, 0); }
inline bool warp_any(bool condition) {
    const char *given = host::meet_warp("warp_any", &condition, sizeof condition);
    bool any = false;
    for (int i = 0; i < 32; ++i)
        any = any || of_lane<bool>(given, i);
    return any;
}

template <class T> struct Shared {
    T *data;
    int size;
    T &operator[](int i) const {
        if (i < 0 || i >= size)
            host::fail("shared memory: element " + std::to_string(i) + " of " + std::to_string(size));
        return data[i];
    }
    T *part(int first, int count) const {
        if (first < 0 || count < 0 || first + count > size)
            host::fail("shared memory: elements " + std::to_string(first) + " to " + std::to_string(first + count) +
                       " of " + std::to_string(size));
        return data + first;
    }
    Shared from(int first) const {
        if (first < 0 || first > size)
            host::fail("shared memory: from element " + std::to_string(first) + " of " + std::to_string(size));
        return {data + first, size - first};
    }
};

class SharedMemory {
  public:
    template <class T> Shared<T> take(int count) {
        const size_t begin = used_;
        used_ += (size_t(count) * sizeof(T) + 15) / 16 * 16;
        if (used_ > host::shared_size())
            host::fail("shared memory: " + std::to_string(used_) + " bytes are taken of the launch's " +
                       std::to_string(host::shared_size()));
        return {reinterpret_cast<T *>(host::shared_memory() + begin), count};
    }

  private:
    size_t used_ = 0;
};

// ---- 16-bit types; rounding to nearest, ties to even

inline float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}
inline void narrow(float x, bf16 &y) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    y.bits = x != x ? uint16_t(0x7fff) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float widen(f16 x) {
    _Float16 half;
    std::memcpy(&half, &x.bits, sizeof half);
    return float(half);
}
inline void narrow(float x, f16 &y) {
    const _Float16 half = _Float16(x);
    std::memcpy(&y.bits, &half, sizeof half);
}

template <class T> uint32_t pack_pair(float first, float second) {
    T low, high;
    narrow(first, low);
    narrow(second, high);
    return uint32_t(low.bits) | uint32_t(high.bits) << 16;
}

// ---- matrix fragments

template <bool kTransposed, class T> void load_matrices(Shared<T> row, uint32_t x[4]) {
    static_assert(sizeof(T) == 2);
    if (row.size < 8)
        host::fail("load_matrices: a row of 8 elements ends behind its array");
    if (reinterpret_cast<uintptr_t>(row.data) % 16 != 0)
        host::fail("load_matrices: rows must be aligned to 16 bytes");
    const char *given = host::meet_warp("load_matrices", &row.data, sizeof row.data);
    const int g = thread() % 32 / 4, t = thread() % 4;
    for (int i = 0; i < 4; ++i) {
        uint16_t pair[2];
        for (int e = 0; e < 2; ++e)
            pair[e] = kTransposed ? of_lane<T *>(given, 8 * i + 2 * t + e)[g].bits
                                  : of_lane<T *>(given, 8 * i + g)[2 * t + e].bits;
        x[i] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
    }
}

template <class T> float half_of(uint32_t pair, int which) {
    return widen(T{uint16_t(which ? pair >> 16 : pair & 0xffff)});
}
template <class T> void multiply_add(float c[4], const uint32_t a[4], const uint32_t b[2], T) {
    struct {
        uint32_t a[4], b[2];
    } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const char *given = host::meet_warp("multiply_add", &mine, sizeof mine);
    const int g = thread() % 32 / 4, t = thread() % 4;
    for (int k = 0; k < 16; ++k) { // in order: the hardware adds 16 products in an order of its own
        const int part = k / 8, of_row = k % 8 / 2, which = k % 2;
        const auto row = of_lane<decltype(mine)>(given, g * 4 + of_row);
        const float a0 = half_of<T>(row.a[2 * part], which), a1 = half_of<T>(row.a[2 * part + 1], which);
        for (int n = 0; n < 2; ++n) {
            const float b0 = half_of<T>(of_lane<decltype(mine)>(given, (2 * t + n) * 4 + of_row).b[part], which);
            c[n] += a0 * b0;
            c[2 + n] += a1 * b0;
        }
    }
}

inline float to_tf32(float x) { // to nearest, ties away from zero
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7f800000) != 0x7f800000)
        bits = (bits + 0x1000) & ~uint32_t(0x1fff);
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}
inline void multiply_add_tf32(float c[4], const float a[4], const float b[2]) {
    const struct {
        float a[4], b[2];
    } mine{{to_tf32(a[0]), to_tf32(a[1]), to_tf32(a[2]), to_tf32(a[3])}, {to_tf32(b[0]), to_tf32(b[1])}};
    typedef std::remove_const_t<decltype(mine)> Given;
    const char *given = host::meet_warp("multiply_add_tf32", &mine, sizeof mine);
    const int g = thread() % 32 / 4, t = thread() % 4;
    for (int k = 0; k < 8; ++k) {
        const Given row = of_lane<Given>(given, g * 4 + k % 4);
        for (int n = 0; n < 2; ++n) {
            const float b0 = of_lane<Given>(given, (2 * t + n) * 4 + k % 4).b[k / 4];
            c[n] += row.a[k / 4 * 2] * b0;
            c[2 + n] += row.a[k / 4 * 2 + 1] * b0;
        }
    }
}

} // namespace nf::cuda
