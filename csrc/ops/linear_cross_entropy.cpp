#include "ops/linear_cross_entropy.hpp"

#include "core/error.hpp"
#include "core/pool.hpp"
#include "ops/matmul.hpp"
#include "ops/work.hpp"
#include "runtime/profiler.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

namespace nf::ops {
namespace {

constexpr const char *kName = "linear_cross_entropy";
// Of logits at once. A chunk of r rows reads the weight twice, reads and writes its gradient, and does 6 r
// multiply-adds and additions for each of their elements: 16 bytes against 6 r operations, so 250 rows (48 MiB at a
// vocabulary of 50,000) cost a tenth for memory where a processor does 10 operations in the time of a byte.
constexpr int64_t kChunkBytes = int64_t(48) << 20;
// However large the vocabulary: matmul has another order of sums up to 16 rows, and little use of a weight that it
// reads.
constexpr int64_t kLeastRows = 64;

struct Release {
    void operator()(char *memory) const { pool::release(memory); }
};

// A matrix of its own from the pool.
struct Buffer {
    std::unique_ptr<char, Release> memory;
    View view;

    Buffer(DType dtype, Shape shape) {
        view.dtype = dtype;
        view.shape = std::move(shape);
        view.strides = {view.shape.back(), 1};
        memory.reset(static_cast<char *>(pool::allocate(static_cast<size_t>(view.size() * view.item_size()))));
        if (!memory)
            throw std::bad_alloc();
        view.data = memory.get();
    }
};

char *row_at(const View &view, int64_t row) { return view.data + row * view.shape.back() * view.item_size(); }

// The rows [first, first + count) of an array in C order, as a matrix.
View rows_of(const View &view, int64_t first, int64_t count) {
    return {row_at(view, first), view.dtype, {count, view.shape.back()}, {view.shape.back(), 1}};
}

View transpose(const View &matrix) {
    return {matrix.data, matrix.dtype, {matrix.shape[1], matrix.shape[0]}, {matrix.strides[1], matrix.strides[0]}};
}

void fill_zeros(const View &view) { std::memset(view.data, 0, static_cast<size_t>(view.size() * view.item_size())); }

void copy_row(const View &from, int64_t row, const View &to, int64_t place) {
    std::memcpy(row_at(to, place), row_at(from, row), static_cast<size_t>(from.shape.back() * from.item_size()));
}

// Elements [first, first + count).
View vector_of(const View &view, int64_t first, int64_t count) {
    return {view.data + first * view.item_size(), view.dtype, {count}, {1}};
}

void fill_ones(const View &view) {
    const uint16_t narrow = view.dtype == DType::f16 ? 0x3C00 : 0x3F80; // of float16, of bfloat16
    for (int64_t i = 0; i < view.size(); ++i)
        if (view.dtype == DType::f64)
            reinterpret_cast<double *>(view.data)[i] = 1;
        else if (view.dtype == DType::f32)
            reinterpret_cast<float *>(view.data)[i] = 1;
        else
            reinterpret_cast<uint16_t *>(view.data)[i] = narrow;
}

int64_t integer_at(const View &view, int64_t i) {
    return view.dtype == DType::i64 ? reinterpret_cast<const int64_t *>(view.data)[i]
                                    : reinterpret_cast<const int32_t *>(view.data)[i];
}

bool is_narrow(DType dtype) { return kItemSize[static_cast<int>(dtype)] == 2; }

// A gradient to which each chunk adds. A 16-bit one is summed beside in float32 and rounded once.
class Sum {
  public:
    Sum(const View &out, const Shape &shape, bool accumulate) : out_(out), accumulate_(accumulate), started_(false) {
        if (is_narrow(out.dtype))
            wide_.emplace(DType::f32, shape);
        sums_ = wide_ ? wide_->view : View{out.data, out.dtype, shape, {shape.back(), 1}};
        started_ = accumulate && !wide_;
    }
    void add(const View &a, const View &b, double scale) {
        Matmul product(a, b);
        product.set_scale(scale);
        product.set_accumulate(started_);
        product.run(sums_);
        started_ = true;
    }
    void finish() {
        if (!started_ && !accumulate_)
            fill_zeros(out_);
        if (!wide_ || !started_)
            return;
        const RoundSumsArgs args{reinterpret_cast<const float *>(sums_.data), out_.data, out_.size(), accumulate_};
        profiler::Scope scope("round_sums", out_.dtype, {args.count}, [&] { return work::round_sums(args); });
        require_memory(runtime::kernels().round_sums[static_cast<int>(out_.dtype)](args));
    }

  private:
    View out_, sums_;
    std::optional<Buffer> wide_;
    bool accumulate_, started_;
};

} // namespace

void LinearCrossEntropy::check() {
    require_axes(kName, "x", x, 1);
    if (weight.ndim() != 2 || weight.shape[1] != x.shape.back() || weight.shape[0] == 0)
        fail_value(kName, "weight must have shape (V, " + std::to_string(x.shape.back()) + ") with V at least 1, got " +
                              to_string(weight.shape));
    if (bias)
        require_shape(kName, "bias", *bias, {weight.shape[0]});
    require_shape(kName, "targets", targets, leading(x.shape));
    require_range(kName, "label_smoothing", label_smoothing, 0, 1);
    if (reduction == Reduction::none)
        fail_value(kName, "reduction must be 'mean' or 'sum', got 'none'");
    require_finite(kName, "dloss", dloss);
    if (chunk < 0)
        fail_value(kName, "chunk must be at least 1, got " + std::to_string(chunk));
    used = check_integers(kName, "targets", targets, weight.shape[0], ignore_index);
}

int64_t LinearCrossEntropy::chunk_count() const {
    const int64_t bytes = weight.shape[0] * kItemSize[static_cast<int>(statistics_type(x.dtype))];
    const int64_t most = chunk ? chunk : std::max(kLeastRows, kChunkBytes / bytes);
    return (used + most - 1) / most;
}

double LinearCrossEntropy::run(const View *dx, const View *dweight, const View *dbias, bool accumulate) const {
    const int64_t rows = row_count(x), classes = weight.shape[0], width = x.shape.back();
    const DType dtype = x.dtype, wide = statistics_type(dtype);

    // Rows that count: the others cost nothing, and what is in them reaches nothing.
    std::vector<int64_t> counted, wanted;
    counted.reserve(static_cast<size_t>(used));
    wanted.reserve(static_cast<size_t>(used));
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t target = integer_at(targets, row);
        if (target != ignore_index) {
            counted.push_back(row);
            wanted.push_back(target);
        } else if (dx) {
            fill_zeros(rows_of(*dx, row, 1));
        }
    }
    const bool gathered = used < rows;
    const double weight_of_row = dloss / (reduction == Reduction::mean && used > 0 ? work::real(used) : 1);
    // dlogits in 16 bits are not scaled, for the mean over many rows would lie below what float16 has: products are.
    const double factor = is_narrow(dtype) ? 1 : weight_of_row, scale = is_narrow(dtype) ? weight_of_row : 1;

    std::optional<Sum> weight_sum, bias_sum;
    if (dweight)
        weight_sum.emplace(*dweight, Shape{classes, width}, accumulate);
    if (dbias)
        bias_sum.emplace(*dbias, Shape{1, classes}, accumulate);
    // Equal parts: a short last chunk would read the weight for little.
    const int64_t chunks = chunk_count(), most = chunks > 0 ? (used + chunks - 1) / chunks : 0;
    const Buffer logits_buffer(wide, {most, classes}), losses(wide, {1, used}), normalisers(wide, {1, most});
    std::optional<Buffer> narrow, x_buffer, dx_buffer, ones;
    if (dx && is_narrow(dtype))
        narrow.emplace(dtype, Shape{most, classes});
    if (gathered)
        x_buffer.emplace(dtype, Shape{most, width});
    if (gathered && dx)
        dx_buffer.emplace(dtype, Shape{most, width});
    if (dbias) {
        ones.emplace(dtype, Shape{most, 1});
        fill_ones(ones->view);
    }
    for (int64_t index = 0; index < chunks; ++index) {
        const int64_t first = used * index / chunks, count = used * (index + 1) / chunks - first;
        const View part = gathered ? rows_of(x_buffer->view, 0, count) : rows_of(x, first, count);
        if (gathered)
            for (int64_t i = 0; i < count; ++i)
                copy_row(x, counted[size_t(first + i)], part, i);

        const View logits = rows_of(logits_buffer.view, 0, count);
        Matmul head(part, transpose(weight));
        if (bias)
            head.set_bias(*bias);
        head.run(logits);

        const View row_losses = vector_of(losses.view, first, count);
        if (!dx) {
            const View here{reinterpret_cast<char *>(wanted.data() + first), DType::i64, {count}, {1}};
            CrossEntropy{"cross_entropy", logits, here, -1, label_smoothing, Reduction::sum}.run(
                row_losses, vector_of(normalisers.view, 0, count));
            continue;
        }
        const View dlogits = narrow ? rows_of(narrow->view, 0, count) : logits;
        const CrossEntropyGradientArgs args{logits.data, wanted.data() + first, row_losses.data, dlogits.data, count,
                                            classes,     label_smoothing,       factor};
        {
            profiler::Scope scope("cross_entropy_gradient", dtype, {count, classes},
                                  [&] { return work::cross_entropy_gradient(args, dtype); });
            require_memory(runtime::kernels().cross_entropy_gradient[static_cast<int>(dtype)](args));
        }

        const View dpart = gathered ? rows_of(dx_buffer->view, 0, count) : rows_of(*dx, first, count);
        Matmul back(dlogits, weight);
        back.set_scale(scale);
        back.run(dpart);
        if (gathered)
            for (int64_t i = 0; i < count; ++i)
                copy_row(dpart, i, *dx, counted[size_t(first + i)]);
        weight_sum->add(transpose(dlogits), part, scale);
        if (bias_sum)
            bias_sum->add(transpose(rows_of(ones->view, 0, count)), dlogits, scale);
    }
    if (weight_sum)
        weight_sum->finish();
    if (bias_sum)
        bias_sum->finish();
    const double loss = sum_of(vector_of(losses.view, 0, used));
    return reduction == Reduction::mean && used > 0 ? loss / work::real(used) : loss;
}

} // namespace nf::ops
