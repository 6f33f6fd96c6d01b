#include "cuda/kernels/matmul.hpp"
#include "cuda/gemm.hpp"

#include "cuda/launchers/grids.hpp"

namespace nf::cuda {
namespace {

// The arrays of a product, their leading axes folded where they lie so in all of them.
struct Folded {
    Shape shape;                       // of the leading axes that are left
    std::vector<const Array *> arrays; // null ones are left out
    std::vector<Shape> strides;

    Folded(const Shape &full, std::initializer_list<const Array *> all) {
        for (const Array *array : all) {
            arrays.push_back(array);
            strides.emplace_back();
        }
        for (size_t axis = 0; axis + 2 < full.size(); ++axis) {
            if (full[axis] == 1)
                continue;
            bool folds = !shape.empty();
            for (size_t i = 0; folds && i < arrays.size(); ++i)
                folds = !arrays[i] || strides[i].back() == full[axis] * arrays[i]->strides[axis];
            if (!folds)
                shape.push_back(1);
            shape.back() *= full[axis];
            for (size_t i = 0; i < arrays.size(); ++i)
                if (arrays[i]) {
                    if (!folds)
                        strides[i].push_back(0);
                    strides[i].back() = arrays[i]->strides[axis];
                }
        }
    }
    int64_t batch() const { return shape.empty() ? 1 : shape.back(); }
    int64_t batch_stride(size_t array) const { return arrays[array] && !shape.empty() ? strides[array].back() : 0; }
    int64_t outer() const {
        int64_t count = 1;
        for (size_t axis = 0; axis + 1 < shape.size(); ++axis)
            count *= shape[axis];
        return count;
    }
    // Where the array begins for an index of all axes but the last.
    void *data(size_t array, int64_t index) const {
        if (!arrays[array])
            return nullptr;
        int64_t offset = 0;
        for (size_t axis = shape.size(); axis-- > 1;) {
            offset += index % shape[axis - 1] * strides[array][axis - 1];
            index /= shape[axis - 1];
        }
        return static_cast<char *>(arrays[array]->data) + offset * kItemSize[int(arrays[array]->dtype)];
    }
};

int64_t stride(const Array &x, int from_end) { return x.strides[x.strides.size() - size_t(from_end)]; }

} // namespace

void matmul(const MatmulInputs &in, const Array &out, const MaybeArray &preactivation, const Allocate &allocate,
            Stream stream) {
    const char *name = "matmul";
    auto maybe = [](const MaybeArray &array) { return array ? &*array : nullptr; };
    enum { kA, kB, kOut, kResidual, kPreactivation };
    const Folded all(out.shape, {&in.a, &in.b, &out, maybe(in.residual), maybe(preactivation)});
    const int64_t m = out.shape[out.shape.size() - 2], n = out.columns(), k = in.a.columns();
    const Activation activation = Activation(in.activation);
    const DType sums_type = acc_of(in.a.dtype);

    Gemm product{};
    product.in_type = in.a.dtype;
    product.m = m;
    product.n = n;
    product.k = k;
    product.a_row = stride(in.a, 2);
    product.a_column = stride(in.a, 1);
    product.b_row = stride(in.b, 2);
    product.b_column = stride(in.b, 1);
    product.a_batch = all.batch_stride(kA);
    product.b_batch = all.batch_stride(kB);
    product.batch = all.batch();
    product.scale = in.scale;

    const bool plain = activation == Activation::none;
    // The library's GELU is an approximation: on an H200 its float64 was right to 1e-10 and its float32 to 1e-6. In 16
    // bits it errs as much as if its argument had been rounded to them.
    const bool gelu = activation == Activation::gelu_tanh && is_half(out.dtype) && !in.residual && !in.accumulate;
    const bool in_one_pass = k > 0 && !(in.residual && in.accumulate) && (plain || gelu) && (!preactivation || !plain);
    product.bias = data_of(in.bias);
    product.bias_type = in.bias ? in.bias->dtype : out.dtype;
    for (int64_t index = 0; index < all.outer(); ++index) {
        product.a = all.data(kA, index);
        product.b = all.data(kB, index);
        if (in_one_pass) {
            product.out_type = out.dtype;
            product.out = all.data(kOut, index);
            product.out_row = stride(out, 2);
            product.out_batch = all.batch_stride(kOut);
            product.gelu_tanh = !plain;
            if (in.accumulate || in.residual) {
                const size_t c = in.accumulate ? size_t(kOut) : size_t(kResidual);
                product.c = all.data(c, index);
                product.c_row = stride(in.accumulate ? out : *in.residual, 2);
                product.c_batch = all.batch_stride(c);
            }
            if (preactivation) {
                product.preactivation = all.data(kPreactivation, index);
                product.preactivation_row = stride(*preactivation, 2);
                product.preactivation_batch = all.batch_stride(kPreactivation);
            }
            if (gemm(product, allocate, stream))
                continue;
            if (product.bias && product.bias_type != out.dtype) {
                // The library takes no float32 bias beside this output: rounded, which is one more rounding of the
                // output's size; the sums on their own would be written and read in float32.
                const Array rounded{allocate(n * kItemSize[int(out.dtype)]), out.dtype, {n}, {1}};
                cast(rounded, *in.bias, 1, stream);
                product.bias = rounded.data;
                product.bias_type = out.dtype;
                if (gemm(product, allocate, stream))
                    continue;
            }
        }
        // The sums on their own, in the type that they are made in, then the rest.
        Gemm sums = product;
        const int64_t item = kItemSize[int(sums_type)];
        sums.out_type = sums_type;
        sums.out = allocate(product.batch * m * n * item);
        sums.out_row = n;
        sums.out_batch = m * n;
        sums.bias = sums.c = nullptr;
        sums.gelu_tanh = false;
        sums.preactivation = nullptr;
        if (k == 0)
            fill_zeros(name, sums.out, product.batch * m * n * item, stream);
        else if (!gemm(sums, allocate, stream))
            throw std::runtime_error("matmul: the library has no product for these shapes");
        for (int64_t i = 0; i < product.batch; ++i) {
            auto at = [&](size_t array) -> void * {
                char *data = static_cast<char *>(all.data(array, index));
                return data ? data + i * all.batch_stride(array) * kItemSize[int(all.arrays[array]->dtype)] : nullptr;
            };
            FinishArgs args{};
            args.sums = static_cast<const char *>(sums.out) + i * m * n * item;
            args.bias = data_of(in.bias);
            args.wide_bias = in.bias && in.bias->dtype == sums_type;
            args.residual = at(kResidual);
            args.out = at(kOut);
            args.preactivation = at(kPreactivation);
            args.residual_row = in.residual ? stride(*in.residual, 2) : 0;
            args.out_row = stride(out, 2);
            args.preactivation_row = preactivation ? stride(*preactivation, 2) : 0;
            args.rows = m;
            args.columns = n;
            args.activation = activation;
            args.accumulate = in.accumulate;
            with_wide(in.a.dtype, out.dtype, [&](auto t, auto o) {
                typedef decltype(t) T;
                launch(name, blocks_for(m * n, kElementThreads), kElementThreads, 0, stream,
                       finish_product<Acc<T>, decltype(o), T>, args);
            });
        }
    }
}

} // namespace nf::cuda
