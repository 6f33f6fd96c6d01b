#include "ops/optimizer.hpp"

#include "core/error.hpp"
#include "ops/work.hpp"
#include "runtime/profiler.hpp"

#include <cmath>

namespace nf::ops {
namespace {

void check_like(const char *operation, const char *name, const std::vector<View> &list,
                const std::vector<View> &values) {
    if (list.size() != values.size())
        fail_value(operation, std::string(name) + " must have " + std::to_string(values.size()) +
                                  " arrays, as values, got " + std::to_string(list.size()));
    for (size_t i = 0; i < list.size(); ++i) {
        const std::string argument = std::string(name) + "[" + std::to_string(i) + "]";
        require_shape(operation, argument.c_str(), list[i], values[i].shape);
    }
}

void check_copies(const char *operation, const Lists &lists) {
    if (lists.copies.empty())
        return;
    if (lists.copies.size() != lists.values.size())
        fail_value(operation, "copies must have " + std::to_string(lists.values.size()) + " arrays, as values, got " +
                                  std::to_string(lists.copies.size()));
    for (size_t i = 0; i < lists.copies.size(); ++i)
        if (lists.copies[i].data)
            require_shape(operation, ("copies[" + std::to_string(i) + "]").c_str(), lists.copies[i],
                          lists.values[i].shape);
}

void require_not_negative(const char *operation, const char *argument, double value) {
    require_finite(operation, argument, value);
    if (value < 0)
        fail_value(operation, std::string(argument) + " must not be negative, got " + std::to_string(value));
}

void require_below_one(const char *operation, const char *argument, double value) {
    if (!(value >= 0 && value < 1))
        fail_value(operation, std::string(argument) + " must be in [0, 1), got " + std::to_string(value));
}

// The pointers that the kernel's arguments point to.
struct Pointers {
    std::vector<int64_t> sizes;
    std::vector<void *> values, first, second, third, copies;
    DType copy_type = DType::bf16;
    std::vector<const void *> grads;
    double elements = 0, copied = 0;

    explicit Pointers(const Lists &lists) {
        for (size_t i = 0; i < lists.values.size(); ++i) {
            sizes.push_back(lists.values[i].size());
            elements += static_cast<double>(sizes.back());
            values.push_back(lists.values[i].data);
            grads.push_back(lists.grads[i].data);
        }
        for (const View &view : lists.first)
            first.push_back(view.data);
        for (const View &view : lists.second)
            second.push_back(view.data);
        for (const View &view : lists.third)
            third.push_back(view.data);
        for (const View &view : lists.copies) {
            copies.push_back(view.data);
            if (view.data) {
                copy_type = view.dtype;
                copied += static_cast<double>(view.size());
            }
        }
    }

    UpdateArgs args() const {
        UpdateArgs result{};
        result.arrays = static_cast<int64_t>(values.size());
        result.sizes = sizes.data();
        result.values = values.data();
        result.grads = grads.data();
        result.first = first.empty() ? nullptr : first.data();
        result.second = second.empty() ? nullptr : second.data();
        result.third = third.empty() ? nullptr : third.data();
        result.copies = copies.empty() ? nullptr : copies.data();
        result.copy_type = copy_type;
        return result;
    }
    // What the copies add to the work of an update: a store of two bytes each.
    profiler::Work with_copies(profiler::Work work) const { return {work.flops, work.bytes + 2 * copied}; }
};

} // namespace

void Sgd::check(const Lists &lists, bool has_momenta) const {
    const char *operation = "sgd_update";
    check_like(operation, "grads", lists.grads, lists.values);
    check_copies(operation, lists);
    if (has_momenta)
        check_like(operation, "momenta", lists.first, lists.values);
    else if (momentum != 0)
        fail_value(operation, "momenta must be given with momentum " + std::to_string(momentum) + ", got None");
    require_finite(operation, "lr", lr);
    require_below_one(operation, "momentum", momentum);
    require_not_negative(operation, "weight_decay", weight_decay);
    require_finite(operation, "grad_scale", grad_scale);
    if (nesterov && momentum == 0)
        fail_value(operation, "nesterov needs a momentum above 0, got 0");
}

void Sgd::run(const Lists &lists) const {
    if (lists.values.empty())
        return;
    const Pointers pointers(lists);
    UpdateArgs args = pointers.args();
    args.c[0] = lr;
    args.c[1] = momentum;
    args.c[2] = weight_decay;
    args.grad_scale = grad_scale;
    args.nesterov = nesterov;
    const DType dtype = lists.values[0].dtype;
    profiler::Scope scope("sgd_update", dtype, {static_cast<int64_t>(pointers.elements)}, [&] {
        return pointers.with_copies(work::sgd(pointers.elements, dtype, args.first, nesterov));
    });
    require_memory(runtime::kernels().sgd_update[int(dtype)](args));
}

void Adam::check(const Lists &lists) const {
    const char *operation = name();
    check_like(operation, "grads", lists.grads, lists.values);
    check_copies(operation, lists);
    check_like(operation, "m", lists.first, lists.values);
    check_like(operation, "v", lists.second, lists.values);
    require_finite(operation, "lr", lr);
    require_below_one(operation, "beta1", beta1);
    require_below_one(operation, "beta2", beta2);
    require_not_negative(operation, "eps", eps);
    require_not_negative(operation, "weight_decay", weight_decay);
    require_finite(operation, "grad_scale", grad_scale);
    if (step < 1)
        fail_value(operation, "step must be 1 or more, got " + std::to_string(step));
}

void Adam::run(const Lists &lists) const {
    if (lists.values.empty())
        return;
    const Pointers pointers(lists);
    UpdateArgs args = pointers.args();
    const double t = static_cast<double>(step);
    args.c[0] = beta1;
    args.c[1] = 1 - beta1;
    args.c[2] = beta2;
    args.c[3] = 1 - beta2;
    args.c[4] = decoupled ? 1 - lr * weight_decay : 1;
    args.c[5] = lr / (1 - std::pow(beta1, t));
    args.c[6] = 1 / std::sqrt(1 - std::pow(beta2, t));
    args.c[7] = eps;
    args.c[8] = decoupled ? 0 : weight_decay;
    args.grad_scale = grad_scale;
    const DType dtype = lists.values[0].dtype;
    profiler::Scope scope(name(), dtype, {static_cast<int64_t>(pointers.elements)},
                          [&] { return pointers.with_copies(work::adam(pointers.elements, dtype)); });
    require_memory(runtime::kernels().adam_update[int(dtype)](args));
}

void Adagrad::check(const Lists &lists) const {
    const char *operation = "adagrad_update";
    check_like(operation, "grads", lists.grads, lists.values);
    check_copies(operation, lists);
    check_like(operation, "sums", lists.first, lists.values);
    require_finite(operation, "lr", lr);
    require_not_negative(operation, "eps", eps);
    require_not_negative(operation, "weight_decay", weight_decay);
    require_finite(operation, "grad_scale", grad_scale);
}

void Adagrad::run(const Lists &lists) const {
    if (lists.values.empty())
        return;
    const Pointers pointers(lists);
    UpdateArgs args = pointers.args();
    args.c[0] = lr;
    args.c[1] = eps;
    args.c[2] = weight_decay;
    args.grad_scale = grad_scale;
    const DType dtype = lists.values[0].dtype;
    profiler::Scope scope("adagrad_update", dtype, {static_cast<int64_t>(pointers.elements)},
                          [&] { return pointers.with_copies(work::adagrad(pointers.elements, dtype)); });
    require_memory(runtime::kernels().adagrad_update[int(dtype)](args));
}

void RmsProp::check(const Lists &lists, bool has_means, bool has_momenta) const {
    const char *operation = "rmsprop_update";
    check_like(operation, "grads", lists.grads, lists.values);
    check_copies(operation, lists);
    check_like(operation, "squares", lists.first, lists.values);
    if (has_means)
        check_like(operation, "means", lists.second, lists.values);
    if (has_momenta)
        check_like(operation, "momenta", lists.third, lists.values);
    else if (momentum != 0)
        fail_value(operation, "momenta must be given with momentum " + std::to_string(momentum) + ", got None");
    require_finite(operation, "lr", lr);
    require_below_one(operation, "alpha", alpha);
    require_not_negative(operation, "eps", eps);
    require_not_negative(operation, "weight_decay", weight_decay);
    require_below_one(operation, "momentum", momentum);
    require_finite(operation, "grad_scale", grad_scale);
}

void RmsProp::run(const Lists &lists) const {
    if (lists.values.empty())
        return;
    const Pointers pointers(lists);
    UpdateArgs args = pointers.args();
    args.c[0] = lr;
    args.c[1] = alpha;
    args.c[2] = 1 - alpha;
    args.c[3] = eps;
    args.c[4] = weight_decay;
    args.c[5] = momentum;
    args.grad_scale = grad_scale;
    const DType dtype = lists.values[0].dtype;
    profiler::Scope scope("rmsprop_update", dtype, {static_cast<int64_t>(pointers.elements)}, [&] {
        return pointers.with_copies(work::rmsprop(pointers.elements, dtype, args.second, args.third));
    });
    require_memory(runtime::kernels().rmsprop_update[int(dtype)](args));
}

double run_global_norm(const std::vector<View> &arrays) {
    double sum = 0, elements = 0, bytes = 0;
    for (const View &view : arrays) {
        elements += static_cast<double>(view.size());
        bytes += static_cast<double>(view.size() * view.item_size());
    }
    profiler::Scope scope("global_norm", arrays.empty() ? DType::f32 : arrays[0].dtype,
                          {static_cast<int64_t>(elements)}, [&] { return profiler::Work{2 * elements, bytes}; });
    for (int dtype = 0; dtype < kFloatTypes; ++dtype) {
        std::vector<int64_t> sizes;
        std::vector<const void *> data;
        for (const View &view : arrays)
            if (static_cast<int>(view.dtype) == dtype) {
                sizes.push_back(view.size());
                data.push_back(view.data);
            }
        double part = 0;
        const NormOfListArgs args{static_cast<int64_t>(data.size()), sizes.data(), data.data(), &part};
        if (!data.empty())
            require_memory(runtime::kernels().sum_of_squares[dtype](args));
        sum += part;
    }
    return std::sqrt(sum);
}

} // namespace nf::ops
