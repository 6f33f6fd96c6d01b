// cuBLASLt's matrix product. It knows columns first, so it is told of the transposes: out^T = b^T a^T.
#include "cuda/gemm.hpp"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

namespace nf::cuda {
namespace {

constexpr int64_t kWorkspace = int64_t(32) << 20; // what NVIDIA's documentation advises for compute capability 9

void check(cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS)
        return;
    if (status == CUBLAS_STATUS_ALLOC_FAILED)
        throw std::bad_alloc();
    throw std::runtime_error(std::string("matmul: ") + what + ": " + cublasLtGetStatusString(status));
}

cudaDataType_t type_of(DType dtype) {
    switch (dtype) {
    case DType::f64:
        return CUDA_R_64F;
    case DType::f16:
        return CUDA_R_16F;
    case DType::bf16:
        return CUDA_R_16BF;
    default:
        return CUDA_R_32F;
    }
}

// Objects of the library that go when this goes.
struct Operation {
    cublasLtMatmulDesc_t object = nullptr;
    ~Operation() {
        if (object)
            cublasLtMatmulDescDestroy(object);
    }
    template <class V> void set(cublasLtMatmulDescAttributes_t attribute, const V &value) {
        check(cublasLtMatmulDescSetAttribute(object, attribute, &value, sizeof value), "an attribute");
    }
};
struct Layout {
    cublasLtMatrixLayout_t object = nullptr;
    // rows x columns, columns first, `leading` elements from one column to the next.
    Layout(DType dtype, int64_t rows, int64_t columns, int64_t leading, int64_t batch, int64_t batch_stride) {
        check(cublasLtMatrixLayoutCreate(&object, type_of(dtype), uint64_t(rows), uint64_t(columns), leading),
              "a layout");
        const int32_t count = int32_t(batch);
        if (batch > 1) {
            check(cublasLtMatrixLayoutSetAttribute(object, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
                  "a batch");
            check(cublasLtMatrixLayoutSetAttribute(object, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                                                   sizeof batch_stride),
                  "a batch");
        }
    }
    ~Layout() {
        if (object)
            cublasLtMatrixLayoutDestroy(object);
    }
};
struct Preference {
    cublasLtMatmulPreference_t object = nullptr;
    Preference() { check(cublasLtMatmulPreferenceCreate(&object), "preferences"); }
    ~Preference() { cublasLtMatmulPreferenceDestroy(object); }
    template <class V> void set(cublasLtMatmulPreferenceAttributes_t attribute, const V &value) {
        check(cublasLtMatmulPreferenceSetAttribute(object, attribute, &value, sizeof value), "a preference");
    }
};

// The greatest power of two, up to 256, that divides the address.
uint32_t alignment_of(const void *data) {
    uint32_t alignment = 256;
    while (reinterpret_cast<uintptr_t>(data) % alignment != 0)
        alignment /= 2;
    return alignment;
}

// One matrix as the library sees it: transposed where its columns are contiguous in C order's sense.
struct Side {
    bool transposed;
    int64_t leading;
};
// (rows, columns) with strides (row, column): in the library's eyes columns x rows.
Side side_of(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    if (column == 1 || columns <= 1)
        return {false, rows > 1 ? row : std::max<int64_t>(columns, 1)};
    return {true, columns > 1 ? column : std::max<int64_t>(rows, 1)};
}

// What an algorithm depends on. The pointers' alignments are among it.
typedef std::tuple<int, int, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, int64_t, int64_t, int, uint32_t, uint32_t, uint32_t, uint32_t>
    Key;
struct Chosen {
    bool there;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
};

std::mutex mutex;
std::map<int, cublasLtHandle_t> handles; // one a device; they live as long as the process
std::map<Key, Chosen> algorithms;

} // namespace

bool gemm(const Gemm &p, const Allocate &allocate, Stream stream) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess)
        throw std::runtime_error("matmul: no CUDA device");
    const bool wide = p.in_type == DType::f64;
    const Side a = side_of(p.m, p.k, p.a_row, p.a_column), b = side_of(p.k, p.n, p.b_row, p.b_column);

    Operation operation;
    check(cublasLtMatmulDescCreate(&operation.object, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                   wide ? CUDA_R_64F : CUDA_R_32F),
          "an operation");
    const cublasOperation_t plain = CUBLAS_OP_N, transposed = CUBLAS_OP_T;
    operation.set(CUBLASLT_MATMUL_DESC_TRANSA, b.transposed ? transposed : plain);
    operation.set(CUBLASLT_MATMUL_DESC_TRANSB, a.transposed ? transposed : plain);
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    if (p.gelu_tanh && p.preactivation)
        epilogue = p.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    else if (p.gelu_tanh)
        epilogue = p.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    else if (p.bias)
        epilogue = CUBLASLT_EPILOGUE_BIAS;
    operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (p.bias) {
        operation.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
        if (p.bias_type != p.out_type)
            operation.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t(type_of(p.bias_type)));
    }
    if (p.preactivation) {
        operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.preactivation);
        operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.preactivation_row);
        if (p.batch > 1)
            operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, p.preactivation_batch);
    }
    const Layout left = b.transposed ? Layout(p.in_type, p.k, p.n, b.leading, p.batch, p.b_batch)
                                     : Layout(p.in_type, p.n, p.k, b.leading, p.batch, p.b_batch);
    const Layout right = a.transposed ? Layout(p.in_type, p.m, p.k, a.leading, p.batch, p.a_batch)
                                      : Layout(p.in_type, p.k, p.m, a.leading, p.batch, p.a_batch);
    const Layout out(p.out_type, p.n, p.m, std::max(p.out_row, p.n), p.batch, p.out_batch);
    const Layout added = p.c ? Layout(p.out_type, p.n, p.m, std::max(p.c_row, p.n), p.batch, p.c_batch)
                             : Layout(p.out_type, p.n, p.m, std::max(p.out_row, p.n), p.batch, p.out_batch);
    const void *c = p.c ? p.c : p.out;

    const uint32_t alignments[4] = {alignment_of(p.b), alignment_of(p.a), alignment_of(c), alignment_of(p.out)};
    const Key key(device, (int(p.in_type) * 8 + int(p.out_type)) * 8 + int(p.bias_type), int(epilogue), p.m, p.n, p.k,
                  p.batch, a.leading, b.leading, p.out_row, p.c_row, p.a_batch, p.b_batch, p.out_batch,
                  p.preactivation_row, (a.transposed ? 1 : 0) + (b.transposed ? 2 : 0) + (p.c ? 4 : 0), alignments[0],
                  alignments[1], alignments[2], alignments[3]);
    cublasLtHandle_t handle;
    Chosen chosen{};
    {
        const std::lock_guard<std::mutex> lock(mutex);
        cublasLtHandle_t &mine = handles[device];
        if (!mine)
            check(cublasLtCreate(&mine), "a handle");
        handle = mine;
        const auto found = algorithms.find(key);
        if (found != algorithms.end()) {
            chosen = found->second;
        } else {
            Preference preference;
            preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(kWorkspace));
            const cublasLtMatmulPreferenceAttributes_t names[4] = {
                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
            for (int i = 0; i < 4; ++i)
                preference.set(names[i], alignments[i]);
            // Sums over K are made by one block, or in parts that are added in one order: results repeat.
            preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                           uint32_t(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
            cublasLtMatmulHeuristicResult_t result{};
            int count = 0;
            const cublasStatus_t status =
                cublasLtMatmulAlgoGetHeuristic(handle, operation.object, left.object, right.object, added.object,
                                               out.object, preference.object, 1, &result, &count);
            if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE)
                check(status, "no algorithm");
            chosen = {status == CUBLAS_STATUS_SUCCESS && count > 0, result.algo, result.workspaceSize};
            algorithms[key] = chosen;
        }
    }
    if (!chosen.there)
        return false;
    const float scale = float(p.scale), beta = p.c ? 1 : 0;
    const double wide_scale = p.scale, wide_beta = p.c ? 1 : 0;
    const void *one = wide ? static_cast<const void *>(&wide_scale) : &scale;
    const void *two = wide ? static_cast<const void *>(&wide_beta) : &beta;
    void *workspace = chosen.workspace ? allocate(int64_t(chosen.workspace)) : nullptr;
    check(cublasLtMatmul(handle, operation.object, one, p.b, left.object, p.a, right.object, two, c, added.object,
                         p.out, out.object, &chosen.algorithm, workspace, chosen.workspace,
                         static_cast<cudaStream_t>(stream)),
          "the product");
    return true;
}

} // namespace nf::cuda
