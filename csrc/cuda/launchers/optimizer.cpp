#include "cuda/kernels/optimizer.hpp"

#include "cuda/launchers/grids.hpp"

namespace nf::cuda {
namespace {

// launch_some(args, blocks) for kMostArrays arrays at a time; fill(args, place, index) enters one. Empty arrays are
// left out.
template <class Args, class Fill, class Launch>
void in_groups(const std::vector<Array> &arrays, Args args, Fill fill, Launch launch_some) {
    size_t next = 0;
    while (next < arrays.size()) {
        args.arrays = 0;
        args.first_chunk[0] = 0;
        for (; next < arrays.size() && args.arrays < kMostArrays; ++next) {
            const int64_t size = arrays[next].size();
            if (size == 0)
                continue;
            args.sizes[args.arrays] = size;
            fill(args, args.arrays, next);
            args.first_chunk[args.arrays + 1] = args.first_chunk[args.arrays] + int(ceil_div(size, kUpdateChunk));
            ++args.arrays;
        }
        if (args.arrays > 0)
            launch_some(args, args.first_chunk[args.arrays]);
    }
}

template <class T, Rule kRule> void run(const UpdateInputs &in, Stream stream) {
    UpdateArgs<T> args{};
    args.nesterov = in.nesterov;
    args.grad_scale = in.grad_scale;
    args.norm = in.norm ? static_cast<const double *>(in.norm->data) : nullptr;
    args.max_norm = in.max_norm;
    for (int i = 0; i < 9; ++i)
        args.c[i] = T(in.c[i]);
    auto at = [](const std::vector<Array> &list, size_t i) {
        return list.empty() ? nullptr : static_cast<T *>(list[i].data);
    };
    for (const MaybeArray &copy : in.copies)
        if (copy)
            args.copies_are_bf16 = copy->dtype == DType::bf16;
    in_groups(
        in.values, args,
        [&](UpdateArgs<T> &some, int place, size_t i) {
            some.values[place] = static_cast<T *>(in.values[i].data);
            some.grads[place] = static_cast<const T *>(in.grads[i].data);
            some.first[place] = at(in.first, i);
            some.second[place] = at(in.second, i);
            some.third[place] = at(in.third, i);
            some.copies[place] = in.copies.empty() ? nullptr : data_of(in.copies[i]);
        },
        [&](const UpdateArgs<T> &some, int blocks) {
            launch(in.operation, blocks, kUpdateThreads, 0, stream, cuda::update<T, kRule>, some);
        });
}

template <Rule kRule> void run_of(const UpdateInputs &in, Stream stream) {
    if (in.values.empty())
        return;
    if (in.values[0].dtype == DType::f64)
        run<double, kRule>(in, stream);
    else
        run<float, kRule>(in, stream);
}

} // namespace

void sgd_update(const UpdateInputs &in, Stream stream) { run_of<Rule::sgd>(in, stream); }
void adam_update(const UpdateInputs &in, Stream stream) { run_of<Rule::adam>(in, stream); }
void adagrad_update(const UpdateInputs &in, Stream stream) { run_of<Rule::adagrad>(in, stream); }
void rmsprop_update(const UpdateInputs &in, Stream stream) { run_of<Rule::rmsprop>(in, stream); }

void global_norm(const Array &out, const std::vector<Array> &arrays, const Allocate &allocate, Stream stream) {
    const char *name = "global_norm";
    int64_t chunks = 0;
    for (const Array &array : arrays)
        chunks += ceil_div(array.size(), kUpdateChunk);
    double *partial = chunks > 0 ? static_cast<double *>(allocate(chunks * int64_t(sizeof(double)))) : nullptr;
    constexpr int64_t kShared = shared_bytes<double>(kUpdateThreads / kWarp);
    int64_t done = 0;
    for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
        std::vector<Array> some;
        for (const Array &array : arrays)
            if (array.dtype == dtype)
                some.push_back(array);
        in_groups(
            some, SquaresArgs{}, [&](SquaresArgs &args, int place, size_t i) { args.data[place] = some[i].data; },
            [&](SquaresArgs args, int blocks) {
                args.partial = partial + done;
                done += blocks;
                with_float(dtype, [&](auto t) {
                    launch(name, blocks, kUpdateThreads, kShared, stream, sum_of_squares<decltype(t)>, args);
                });
            });
    }
    launch(name, 1, kUpdateThreads, kShared, stream, root_of_sum,
           RootArgs{partial, chunks, static_cast<double *>(out.data)});
}

} // namespace nf::cuda
