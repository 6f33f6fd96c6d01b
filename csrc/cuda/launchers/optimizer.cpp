#include "cuda/kernels/adafactor.hpp"

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

template <class T> void run_adafactor(const UpdateInputs &in, const Allocate &allocate, Stream stream) {
    constexpr int64_t kShared = shared_bytes<double>(kUpdateThreads / kWarp);
    const char *name = in.operation;
    for (size_t i = 0; i < in.values.size(); ++i) {
        const Array &value = in.values[i];
        if (value.size() == 0)
            continue;
        AdafactorArgs<T> args{};
        args.value = static_cast<T *>(value.data);
        args.grad = static_cast<const T *>(in.grads[i].data);
        args.rows = static_cast<T *>(in.first[i].data);
        args.height = value.size();
        args.matrices = args.width = 1;
        if (value.ndim() >= 2) {
            args.columns = static_cast<T *>(in.second[i].data);
            args.width = value.columns();
            args.height = value.shape[value.shape.size() - 2];
            args.matrices = value.size() / args.width / args.height;
        }
        if (!in.copies.empty() && in.copies[i]) {
            args.copy = in.copies[i]->data;
            args.copy_is_bf16 = in.copies[i]->dtype == DType::bf16;
        }
        args.share = in.c[0];
        args.rate = in.c[1];
        args.keep = in.c[2];
        args.eps1 = in.c[3];
        args.eps2 = in.c[4];
        args.d = in.c[5];
        args.grad_scale = in.grad_scale;
        args.norm = in.norm ? static_cast<const double *>(in.norm->data) : nullptr;
        args.max_norm = in.max_norm;
        const int64_t chunks = ceil_div(value.size(), kUpdateChunk), of_columns = args.columns ? args.width : 0;
        double *memory =
            static_cast<double *>(allocate((args.matrices + of_columns + 2 * chunks + 1) * int64_t(sizeof(double))));
        args.means = memory;
        args.sums = memory + args.matrices + of_columns;
        launch(name, blocks_for(args.matrices * args.height, kUpdateThreads / kWarp), kUpdateThreads, 0, stream,
               adafactor_rows<T>, args);
        if (args.columns) {
            double *sums = memory + args.matrices;
            for (int64_t matrix = 0; matrix < args.matrices; ++matrix) {
                const SquareTerm<T> term{args.grad + matrix * args.height * args.width, args.grad_scale, args.max_norm,
                                         args.norm};
                sum_over_rows<double, double>(name, term, sums, args.height, args.width, false, allocate, stream);
                launch(name, blocks_for(args.width, kUpdateThreads), kUpdateThreads, 0, stream, adafactor_columns<T>,
                       AdafactorColumnsArgs<T>{args, sums, matrix});
            }
            launch(name, args.matrices, kUpdateThreads, kShared, stream, adafactor_means<T>, args);
        }
        launch(name, chunks, kUpdateThreads, kShared, stream, adafactor_sums<T>, args);
        launch(name, 1, kUpdateThreads, kShared, stream, adafactor_factor<T>, args);
        launch(name, blocks_for(value.size(), kUpdateThreads), kUpdateThreads, 0, stream, adafactor_apply<T>, args);
    }
}

} // namespace

void lion_update(const UpdateInputs &in, Stream stream) { run_of<Rule::lion>(in, stream); }
void adafactor_update(const UpdateInputs &in, const Allocate &allocate, Stream stream) {
    if (in.values.empty())
        return;
    if (in.values[0].dtype == DType::f64)
        run_adafactor<double>(in, allocate, stream);
    else
        run_adafactor<float>(in, allocate, stream);
}
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
