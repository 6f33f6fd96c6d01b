#include "ops/packed_matrix.hpp"

#include "core/error.hpp"
#include "core/pool.hpp"
#include "ops/matmul.hpp"
#include "runtime/profiler.hpp"

#include <new>

namespace nf::ops {

void PackedMatrix::Release::operator()(void *memory) const { pool::release(memory); }

PackedMatrix::PackedMatrix(const View &b, Stored stored) : stored_(stored) {
    if (b.ndim() != 2)
        fail_value("PackedMatrix", "b must have 2 axes, got shape " + to_string(b.shape));
    k_ = b.shape[0];
    n_ = b.shape[1];
    int64_t item, units;
    runtime::kernels().size_of_packed(stored, k_, n_, item, panel_, units);
    bytes_ = item * units + (stored == Stored::i8 ? 4 * n_ : 0);
    panels_.reset(pool::allocate_together(static_cast<size_t>(item * units)));
    if (stored == Stored::i8)
        column_scale_.reset(static_cast<float *>(pool::allocate(static_cast<size_t>(4 * n_))));
    if (!panels_ || (stored == Stored::i8 && !column_scale_))
        throw std::bad_alloc();
    PackMatrixArgs args = arguments(b.data);
    matrix_strides(b, args.b_row, args.b_col);
    profiler::Scope scope("pack_matrix", b.dtype, {k_, n_},
                          [&] { return profiler::Work{0, static_cast<double>(b.size() * b.item_size() + bytes_)}; });
    runtime::kernels().pack_matrix[static_cast<int>(b.dtype)](args);
}

PackMatrixArgs PackedMatrix::arguments(const void *b) const {
    PackMatrixArgs args{};
    args.b = b;
    args.panels = panels_.get();
    args.column_scale = column_scale_.get();
    args.stored = stored_;
    args.k = k_;
    args.n = n_;
    return args;
}

void PackedMatrix::unpack(const View &out) const {
    PackMatrixArgs args = arguments(out.data);
    args.b_row = n_;
    runtime::kernels().unpack_matrix(args);
}

} // namespace nf::ops
