// Elements that lie beside each other, loaded and stored 16 bytes at once: single elements of 2 bytes, each by its own
// instruction, leave half of the memory's bandwidth unused.
#pragma once
#include "cuda/device.hpp"

#include <string.h>

namespace nf::cuda {

// Elements of 16 bytes.
template <class T> constexpr int kPack = 16 / int(sizeof(T));
struct alignas(16) Words {
    uint32_t words[4];
};

// Whether all of these are at multiples of 16 bytes; null is.
template <class... Pointers> bool are_aligned(Pointers... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// So many elements, a multiple of kPack; one by one where they are not aligned.
template <int kCount, class T> NF_DEVICE void load_pack(const T *x, bool is_aligned, Acc<T> (&values)[kCount]) {
    static_assert(kCount % kPack<T> == 0);
    if (is_aligned) {
        NF_UNROLL
        for (int part = 0; part < kCount / kPack<T>; ++part) {
            const Words words = reinterpret_cast<const Words *>(x)[part];
            T elements[kPack<T>];
            memcpy(elements, &words, sizeof words);
            NF_UNROLL
            for (int i = 0; i < kPack<T>; ++i)
                values[part * kPack<T> + i] = widen(elements[i]);
        }
    } else {
        NF_UNROLL
        for (int i = 0; i < kCount; ++i)
            values[i] = load(x, i);
    }
}
template <int kCount, class T> NF_DEVICE void store_pack(T *x, bool is_aligned, const Acc<T> (&values)[kCount]) {
    static_assert(kCount % kPack<T> == 0);
    if (is_aligned) {
        NF_UNROLL
        for (int part = 0; part < kCount / kPack<T>; ++part) {
            T elements[kPack<T>];
            NF_UNROLL
            for (int i = 0; i < kPack<T>; ++i)
                narrow(values[part * kPack<T> + i], elements[i]);
            Words words;
            memcpy(&words, elements, sizeof words);
            reinterpret_cast<Words *>(x)[part] = words;
        }
    } else {
        NF_UNROLL
        for (int i = 0; i < kCount; ++i)
            store(x, i, values[i]);
    }
}

// f(first) for each element that this thread has: a pack at once where it is whole, by `whole`, else one by one.
template <int kCount, class Whole, class One>
NF_DEVICE void for_packs(int64_t count, int block_threads, Whole whole, One one) {
    for (int64_t first = (block() * block_threads + thread()) * kCount; first < count;
         first += blocks() * block_threads * kCount) {
        if (first + kCount <= count)
            whole(first);
        else
            for (int64_t i = first; i < count; ++i)
                one(i);
    }
}

} // namespace nf::cuda
