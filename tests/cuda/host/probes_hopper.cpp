// Kernels that use what compute capability 9.0 adds, rightly and wrongly: tests/cuda/test_hopper.py runs them.
#include "cuda/tensor_map.hpp"

#include "cuda/api.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace nf::cuda {
namespace {

// ---- a box of 4 axes, as it lies in shared memory

struct BoxArgs {
    TensorMap from;
    int at[4], rows;
    uint16_t *out;
};
NF_KERNEL(32) box(NF_ARGS BoxArgs args) {
    SharedMemory memory;
    Shared<bf16> tile = memory.take<bf16>(args.rows * kPanel);
    Shared<uint64_t> came = memory.take<uint64_t>(1);
    if (thread() == 0) {
        init_phases(came, 1);
        publish_phases();
    }
    barrier();
    if (thread() == 0) {
        expect_bytes(came, args.rows * 128);
        load_tile(tile, args.from, args.at[0], args.at[1], args.at[2], args.at[3], came);
    }
    wait_phase(came, 0);
    for (int i = thread(); i < args.rows * kPanel; i += 32)
        args.out[i] = tile[i].bits;
}

// ---- c (64 x 8N) = a (64 x 64) b (64 x 8N)

struct ProductArgs {
    TensorMap a, b;
    const uint16_t *a_data;
    float *c;
    int kind_of_a; // 0: (64 rows, depth), 1: transposed, 2: from registers
    bool b_transposed;
};
template <class T, int N> NF_KERNEL(kGroup) product(NF_ARGS ProductArgs args) {
    constexpr int kDepth = 64, kColumns = 8 * N;
    SharedMemory memory;
    Shared<T> a = memory.take<T>(64 * kDepth), b = memory.take<T>(kColumns * kDepth);
    Shared<uint64_t> came = memory.take<uint64_t>(1);
    if (thread() == 0) {
        init_phases(came, 1);
        publish_phases();
    }
    barrier();
    if (thread() == 0) {
        expect_bytes(came, (64 + kColumns) * kDepth * 2);
        load_tile(a, args.a, 0, 0, 0, 0, came);
        for (int column = 0; column < (args.b_transposed ? kColumns : kPanel); column += kPanel)
            load_tile(b.from(column * kDepth), args.b, column, 0, 0, 0, came);
    }
    wait_phase(came, 0);
    float c[N][4];
    const int row = warp() * 16 + lane() / 4, t = lane() % 4;
    begin_products();
    for (int k = 0; k < kDepth; k += 16) {
        const bool add = k > 0;
        const uint64_t right = args.b_transposed ? rows_of_tile(b, kDepth, k) : columns_of_tile(b, kColumns, 0, k);
        if (args.kind_of_a == 2) {
            uint32_t fragment[4];
            for (int i = 0; i < 4; ++i) {
                const uint16_t *pair = args.a_data + (row + i % 2 * 8) * kDepth + k + 2 * t + i / 2 * 8;
                fragment[i] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
            }
            if (args.b_transposed)
                multiply_registers<true>(c, fragment, right, add, T());
            else
                multiply_registers<false>(c, fragment, right, add, T());
        } else if (args.kind_of_a == 1) {
            if (args.b_transposed)
                multiply_shared<true, true>(c, rows_of_tile(a, kDepth, k), right, add, T());
            else
                multiply_shared<true, false>(c, rows_of_tile(a, kDepth, k), right, add, T());
        } else {
            if (args.b_transposed)
                multiply_shared<false, true>(c, columns_of_tile(a, 64, 0, k), right, add, T());
            else
                multiply_shared<false, false>(c, columns_of_tile(a, 64, 0, k), right, add, T());
        }
    }
    end_products();
    wait_products<0>();
    for (int n = 0; n < N; ++n)
        for (int e = 0; e < 4; ++e)
            args.c[(row + e / 2 * 8) * kColumns + n * 8 + 2 * t + e % 2] = c[n][e];
}

// ---- right and wrong use

struct UseArgs {
    TensorMap from; // 64 x 64 ones
    double *out;
    int which;
};
NF_KERNEL(2 * kGroup) use(NF_ARGS UseArgs args) {
    SharedMemory memory;
    Shared<bf16> tile = memory.take<bf16>(64 * kPanel);
    Shared<int> values = memory.take<int>(2 * kGroup);
    Shared<uint64_t> came = memory.take<uint64_t>(1), forgotten = memory.take<uint64_t>(1);
    const bool first = thread() == 0;
    if (first) {
        init_phases(came, 1);
        publish_phases();
    }
    barrier();
    auto load = [&](int row) {
        if (first) {
            expect_bytes(came, 64 * 128);
            load_tile(tile, args.from, 0, row, 0, 0, came);
        }
    };
    auto multiply = [&](float (&c)[8][4], int row) {
        multiply_shared<false, false>(c, columns_of_tile(tile, 64, 0, 0), columns_of_tile(tile, 64, row, 0), true,
                                      bf16());
    };
    double &out = args.out[thread()];
    float c[8][4] = {};
    switch (args.which) {
    case 0: // the phases of a barrier, three times: one thread writes, the others wait
        for (int round = 0; round < 3; ++round) {
            if (first) {
                values[0] = round + 7;
                arrive_phase(came);
            }
            wait_phase(came, round % 2);
            out = 10 * (round ? out : 0) + values[0];
            barrier();
        }
        break;
    case 1: // the second group waits for the first, which does not wait
        if (thread() < kGroup) {
            values[thread()] = thread();
            group_arrive(3, 2 * kGroup);
            out = -1;
        } else {
            group_barrier(3, 2 * kGroup);
            out = values[thread() - kGroup];
        }
        break;
    case 2:
        out = group_any(1 + thread() / kGroup, kGroup, thread() == 200);
        break;
    case 3: // a batch of two products, and one that is still under way
        load(0);
        wait_phase(came, 0);
        begin_products();
        multiply(c, 0);
        multiply(c, 0);
        end_products();
        multiply(c, 0);
        end_products();
        wait_products<1>();
        wait_products<0>();
        out = double(c[7][3]);
        break;
    case 4: // nobody arrives
        wait_phase(came, 0);
        break;
    case 5: // the tile is not waited for
        load(0);
        barrier();
        out = widen(tile[5]);
        barrier();
        wait_phase(came, 0);
        break;
    case 6:
        arrive_phase(forgotten);
        break;
    case 7: // no begin_products
        multiply(c, 0);
        break;
    case 8: // sums are looked at before they are waited for
        load(0);
        wait_phase(came, 0);
        begin_products();
        multiply(c, 0);
        end_products();
        out = double(c[0][0]);
        wait_products<0>();
        break;
    case 9: // what a product reads is overwritten
        load(0);
        wait_phase(came, 0);
        begin_products();
        multiply(c, 0);
        end_products();
        barrier();
        load(64);
        wait_phase(came, 1);
        wait_products<0>();
        break;
    case 10: // not waited for at all
        load(0);
        wait_phase(came, 0);
        begin_products();
        multiply(c, 0);
        end_products();
        break;
    case 11: // warps of a warpgroup in different products
        load(0);
        wait_phase(came, 0);
        begin_products();
        multiply(c, warp() == 2 ? 8 : 0);
        end_products();
        wait_products<0>();
        break;
    case 12:
        if (warp() < 2)
            group_barrier(1, warp() == 0 ? 64 : 96);
        break;
    case 13: // a copy that nobody waits for
        load(0);
        break;
    case 14: // a product of three of a warpgroup's warps
        load(0);
        wait_phase(came, 0);
        begin_products();
        if (warp() != 3)
            multiply(c, 0);
        end_products();
        wait_products<0>();
        break;
    case 15: // counted at a barrier that nobody comes to
        group_arrive(2, 512);
        break;
    default: // the bytes come, the arrival does not
        if (first)
            load_tile(tile, args.from, 0, 0, 0, 0, came);
        wait_phase(came, 0);
    }
}

TensorMap map_of(uintptr_t data, const std::vector<int64_t> &sizes, const std::vector<int64_t> &strides, int rows) {
    TiledMatrices matrices{reinterpret_cast<void *>(data), {}, {}, rows};
    std::copy(sizes.begin(), sizes.end(), matrices.sizes);
    std::copy(strides.begin(), strides.end(), matrices.strides);
    TensorMap map;
    if (!make_tensor_map(map, matrices))
        throw py::value_error("TMA cannot read this");
    return map;
}

} // namespace

void bind_hopper_probes(py::module_ &m) {
    m.def("set_capability", [](int value) { capability() = value; });
    m.def("hopper_box", [](uintptr_t data, std::vector<int64_t> sizes, std::vector<int64_t> strides,
                           std::vector<int> at, int rows, uintptr_t out) {
        const BoxArgs args{map_of(data, sizes, strides, rows),
                           {at.at(0), at.at(1), at.at(2), at.at(3)},
                           rows,
                           reinterpret_cast<uint16_t *>(out)};
        launch("box", 1, 32, rows * 128 + 16, nullptr, box, args);
    });
    m.def("hopper_product",
          [](uintptr_t a, uintptr_t b, uintptr_t c, int columns, bool bfloat, int kind_of_a, bool b_transposed) {
              const int64_t rows_of_b = b_transposed ? 64 : columns, columns_of_b = b_transposed ? columns : 64;
              const ProductArgs args{map_of(a, {64, 64, 1, 1}, {64, 0, 0}, 64),
                                     map_of(b, {columns_of_b, rows_of_b, 1, 1}, {columns_of_b, 0, 0}, int(rows_of_b)),
                                     reinterpret_cast<const uint16_t *>(a),
                                     reinterpret_cast<float *>(c),
                                     kind_of_a,
                                     b_transposed};
              const auto kernel = columns == 64 ? (bfloat ? product<bf16, 8> : product<f16, 8>)
                                                : (bfloat ? product<bf16, 16> : product<f16, 16>);
              launch("product", 1, kGroup, (64 + columns) * 128 + 16, nullptr, kernel, args);
          });
    m.def("hopper_use", [](uintptr_t ones, int which) {
        std::vector<double> out(2 * kGroup, -2);
        const UseArgs args{map_of(ones, {64, 64, 1, 1}, {64, 0, 0}, 64), out.data(), which};
        launch("use", 1, 2 * kGroup, 64 * 128 + 1024 + 32, nullptr, use, args);
        return out;
    });
}

} // namespace nf::cuda
