// Kernels that use the device layer rightly and wrongly: tests/cuda/test_fibres.py runs them.
#include "cuda/kernels/rows.hpp"

#include "cuda/api.hpp"
#include "cuda/launch.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace nf::cuda {
namespace {

struct ProbeArgs {
    int64_t *out;
    int which;
};

NF_KERNEL(64) probe(NF_ARGS ProbeArgs args) {
    const int64_t at = block() * threads() + thread();
    switch (args.which) {
    case 0: // each lane of the lower half of the grid gets its right neighbour's number
        args.out[at] = shuffle(at, (lane() + 1) % kWarp);
        break;
    case 1:
        args.out[at] = shuffle_xor(at, 5);
        break;
    case 2: { // what the other warp wrote, behind a barrier
        Shared<int64_t> values = SharedMemory().take<int64_t>(64);
        values[thread()] = at;
        barrier();
        args.out[at] = values[63 - thread()];
        break;
    }
    case 3:
        args.out[at] = barrier_any(thread() == 40 && block() == 1) + 2 * warp_any(lane() == 3 && warp() == 1);
        break;
    case 4: // not all threads come to the barrier
        if (thread() != 7)
            barrier();
        break;
    case 5: // a lane is missing
        if (lane() != 9)
            shuffle(1, 0);
        break;
    case 6: // lanes in different operations
        if (lane() < 16)
            shuffle(1, 0);
        else
            shuffle_xor(1, 1);
        break;
    case 7: // half a warp waits for the block, half for its warp
        if (lane() < 16)
            barrier();
        else
            shuffle(1, 0);
        break;
    case 8:
        SharedMemory().take<int64_t>(64)[64] = 1;
        break;
    case 9:
        SharedMemory().take<int64_t>(65)[0] = 1;
        break;
    case 10: { // behind the end, past the check: for AddressSanitizer
        Shared<char> all = SharedMemory().take<char>(64 * 8);
        volatile char *end = all.data;
        end[64 * 8] = 1;
        break;
    }
    case 13: { // what the other warp wrote, without a barrier
        Shared<int64_t> values = SharedMemory().take<int64_t>(64);
        values[thread()] = at;
        args.out[at] = values[63 - thread()];
        break;
    }
    case 11: // read before anything was written
        args.out[at] = SharedMemory().take<double>(64)[thread()] != SharedMemory().take<double>(64)[thread()];
        break;
    default: // sums of a block, twice with the same scratch
        Shared<double> scratch = SharedMemory().take<double>(2);
        const double once = block_sum(double(at), scratch);
        args.out[at] = int64_t(block_sum(once, scratch) + block_max(double(thread()), scratch));
    }
}

struct FragmentArgs {
    const uint16_t *a, *b;
    float *c;
    bool transposed;
};
template <class T> NF_KERNEL(32) fragments(NF_ARGS FragmentArgs args) {
    SharedMemory memory;
    Shared<T> a = memory.take<T>(256), b = memory.take<T>(256);
    for (int i = thread(); i < 256; i += 32) {
        a[i].bits = args.a[i];
        b[i].bits = args.b[i];
    }
    barrier();
    uint32_t x[4], y[4];
    if (args.transposed) { // a lies as (k, m), b as (k, n)
        load_matrices<true>(a.from((lane() % 8 + lane() / 16 * 8) * 16 + lane() / 8 % 2 * 8), x);
        load_matrices<true>(b.from(lane() % 16 * 16 + lane() / 16 * 8), y);
    } else { // (m, k) and (n, k)
        load_matrices<false>(a.from(lane() % 16 * 16 + lane() / 16 * 8), x);
        load_matrices<false>(b.from((lane() % 8 + lane() / 16 * 8) * 16 + lane() / 8 % 2 * 8), y);
    }
    for (int half = 0; half < 2; ++half) {
        float c[4] = {};
        multiply_add(c, x, y + 2 * half, T());
        for (int i = 0; i < 4; ++i)
            args.c[(lane() / 4 + i / 2 * 8) * 16 + 8 * half + lane() % 4 * 2 + i % 2] = c[i];
    }
}

} // namespace

void bind_probes(py::module_ &m) {
    py::register_exception<host::KernelError>(m, "KernelError", PyExc_RuntimeError);
    m.def("set_schedule", &host::set_schedule);
    m.def("warp_meetings", &host::warp_meetings);
    m.def("probe", [](int which, int64_t blocks) {
        std::vector<int64_t> out(size_t(blocks * 64), -1);
        launch("probe", blocks, 64, 64 * 8, nullptr, probe, ProbeArgs{out.data(), which});
        return out;
    });
    m.def("fragments", [](uintptr_t a, uintptr_t b, uintptr_t c, bool bfloat, bool transposed) {
        const FragmentArgs args{reinterpret_cast<const uint16_t *>(a), reinterpret_cast<const uint16_t *>(b),
                                reinterpret_cast<float *>(c), transposed};
        launch("fragments", 1, 32, 1024, nullptr, bfloat ? fragments<bf16> : fragments<f16>, args);
    });
}

} // namespace nf::cuda
