#include "bindings/scalars.hpp"
#include "ops/optimizer.hpp"

namespace nf::bindings {
namespace {

enum class Access { read, write };

// The views of a list of arrays, of one dtype if they are for an update. Arrays that are written must be contiguous;
// others are copied if they are not, and `keep` holds on to them.
std::vector<View> list(const char *operation, const char *name, py::handle objects, Access access, bool update,
                       std::optional<DType> &dtype, std::vector<Input> &keep) {
    if (!py::isinstance<py::iterable>(objects) || py::isinstance<py::array>(objects))
        fail_type(operation, std::string(name) + " must be a list of arrays, got " + type_name(objects));
    std::vector<View> views;
    for (const py::handle object : objects) {
        const std::string argument = std::string(name) + "[" + std::to_string(views.size()) + "]";
        Input array = access == Access::write ? output(operation, argument.c_str(), object)
                                              : input(operation, argument.c_str(), object, Layout::contiguous);
        require_float(operation, argument.c_str(), array.view);
        if (update && array.view.dtype != DType::f32 && array.view.dtype != DType::f64)
            fail_type(operation, argument + " must have dtype float32 or float64, got " + name_of(array.view.dtype));
        if (update && dtype && array.view.dtype != *dtype)
            fail_type(operation, argument + " must have the dtype of the first array, " + name_of(*dtype) + ", got " +
                                     name_of(array.view.dtype));
        if (!array.view.is_contiguous())
            fail_value(operation, argument + " must be C-contiguous, it is updated in place");
        dtype = array.view.dtype;
        views.push_back(array.view);
        keep.push_back(std::move(array));
    }
    return views;
}

// The lists of an update, of one dtype: values and gradients, then what its rule keeps.
class Arrays {
  public:
    ops::Lists lists;

    Arrays(const char *operation, py::handle values, py::handle grads) : operation_(operation) {
        lists.values = list(operation_, "values", values, Access::write, true, dtype_, keep_);
        lists.grads = list(operation_, "grads", grads, Access::read, true, dtype_, keep_);
    }
    std::vector<View> kept(const char *name, py::handle objects) {
        return list(operation_, name, objects, Access::write, true, dtype_, keep_);
    }
    // None, or an array of 16 bits or None for each value; they are all of one dtype.
    void set_copies(py::handle objects) {
        if (objects.is_none())
            return;
        if (!py::isinstance<py::iterable>(objects) || py::isinstance<py::array>(objects))
            fail_type(operation_, "copies must be a list of arrays and None, got " + type_name(objects));
        std::optional<DType> dtype;
        for (const py::handle object : objects) {
            const std::string argument = "copies[" + std::to_string(lists.copies.size()) + "]";
            if (object.is_none()) {
                lists.copies.push_back({});
                continue;
            }
            Input array = output(operation_, argument.c_str(), object);
            const DType found = array.view.dtype;
            if ((found != DType::f16 && found != DType::bf16) || (dtype && found != *dtype) || dtype_ == DType::f64)
                fail_type(operation_, argument + " must have dtype float16 or bfloat16, one for all, beside float32, " +
                                          "got " + name_of(found));
            if (!array.view.is_contiguous())
                fail_value(operation_, argument + " must be C-contiguous, it is written in place");
            dtype = found;
            lists.copies.push_back(array.view);
            keep_.push_back(std::move(array));
        }
        if (lists.copies.empty() && !lists.values.empty()) // empty elsewhere means that there are none
            fail_value(operation_,
                       "copies must have " + std::to_string(lists.values.size()) + " arrays, as values, got 0");
    }

  private:
    const char *operation_;
    std::optional<DType> dtype_;
    std::vector<Input> keep_;
};

void sgd_update(py::handle values, py::handle grads, py::handle momenta, py::handle lr, py::handle momentum,
                py::handle nesterov, py::handle weight_decay, py::handle grad_scale, py::handle copies) {
    const char *name = "sgd_update";
    Arrays arrays(name, values, grads);
    arrays.set_copies(copies);
    if (!momenta.is_none())
        arrays.lists.first = arrays.kept("momenta", momenta);
    const ops::Sgd rule{number(name, "lr", lr), number(name, "momentum", momentum),
                        number(name, "weight_decay", weight_decay), number(name, "grad_scale", grad_scale),
                        boolean(name, "nesterov", nesterov)};
    rule.check(arrays.lists, !momenta.is_none());
    py::gil_scoped_release release;
    rule.run(arrays.lists);
}

template <bool Decoupled>
void adam_update(py::handle values, py::handle grads, py::handle m, py::handle v, py::handle lr, py::handle beta1,
                 py::handle beta2, py::handle eps, py::handle weight_decay, py::handle step, py::handle grad_scale,
                 py::handle copies) {
    const char *name = Decoupled ? "adamw_update" : "adam_update";
    Arrays arrays(name, values, grads);
    arrays.set_copies(copies);
    arrays.lists.first = arrays.kept("m", m);
    arrays.lists.second = arrays.kept("v", v);
    const ops::Adam rule{number(name, "lr", lr),
                         number(name, "beta1", beta1),
                         number(name, "beta2", beta2),
                         number(name, "eps", eps),
                         number(name, "weight_decay", weight_decay),
                         number(name, "grad_scale", grad_scale),
                         integer(name, "step", step),
                         Decoupled};
    rule.check(arrays.lists);
    py::gil_scoped_release release;
    rule.run(arrays.lists);
}

void adagrad_update(py::handle values, py::handle grads, py::handle sums, py::handle lr, py::handle eps,
                    py::handle weight_decay, py::handle grad_scale, py::handle copies) {
    const char *name = "adagrad_update";
    Arrays arrays(name, values, grads);
    arrays.set_copies(copies);
    arrays.lists.first = arrays.kept("sums", sums);
    const ops::Adagrad rule{number(name, "lr", lr), number(name, "eps", eps),
                            number(name, "weight_decay", weight_decay), number(name, "grad_scale", grad_scale)};
    rule.check(arrays.lists);
    py::gil_scoped_release release;
    rule.run(arrays.lists);
}

void rmsprop_update(py::handle values, py::handle grads, py::handle squares, py::handle means, py::handle momenta,
                    py::handle lr, py::handle alpha, py::handle eps, py::handle weight_decay, py::handle momentum,
                    py::handle grad_scale, py::handle copies) {
    const char *name = "rmsprop_update";
    Arrays arrays(name, values, grads);
    arrays.set_copies(copies);
    arrays.lists.first = arrays.kept("squares", squares);
    if (!means.is_none())
        arrays.lists.second = arrays.kept("means", means);
    if (!momenta.is_none())
        arrays.lists.third = arrays.kept("momenta", momenta);
    const ops::RmsProp rule{number(name, "lr", lr),
                            number(name, "alpha", alpha),
                            number(name, "eps", eps),
                            number(name, "weight_decay", weight_decay),
                            number(name, "momentum", momentum),
                            number(name, "grad_scale", grad_scale)};
    rule.check(arrays.lists, !means.is_none(), !momenta.is_none());
    py::gil_scoped_release release;
    rule.run(arrays.lists);
}

double global_norm(py::handle arrays) {
    std::optional<DType> dtype;
    std::vector<Input> keep;
    const std::vector<View> views = list("global_norm", "arrays", arrays, Access::read, false, dtype, keep);
    py::gil_scoped_release release;
    return ops::run_global_norm(views);
}

} // namespace

void bind_optimizer(py::module_ &m) {
    define(m,
           "sgd_update(values: collections.abc.Iterable[numpy.ndarray], grads: "
           "collections.abc.Iterable[numpy.ndarray], momenta: collections.abc.Iterable[numpy.ndarray] | None, lr: "
           "float, momentum: float, nesterov: bool, weight_decay: float, grad_scale: float, copies: "
           "collections.abc.Iterable[numpy.ndarray | None] | None, /) -> None",
           &sgd_update);
    define(
        m,
        "adam_update(values: collections.abc.Iterable[numpy.ndarray], grads: collections.abc.Iterable[numpy.ndarray], "
        "m: collections.abc.Iterable[numpy.ndarray], v: collections.abc.Iterable[numpy.ndarray], lr: float, beta1: "
        "float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float, copies: "
        "collections.abc.Iterable[numpy.ndarray | None] | None, /) -> None",
        &adam_update<false>);
    define(
        m,
        "adamw_update(values: collections.abc.Iterable[numpy.ndarray], grads: collections.abc.Iterable[numpy.ndarray], "
        "m: collections.abc.Iterable[numpy.ndarray], v: collections.abc.Iterable[numpy.ndarray], lr: float, beta1: "
        "float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float, copies: "
        "collections.abc.Iterable[numpy.ndarray | None] | None, /) -> None",
        &adam_update<true>);
    define(m,
           "adagrad_update(values: collections.abc.Iterable[numpy.ndarray], grads: "
           "collections.abc.Iterable[numpy.ndarray], sums: collections.abc.Iterable[numpy.ndarray], lr: float, eps: "
           "float, weight_decay: float, grad_scale: float, copies: collections.abc.Iterable[numpy.ndarray | None] | "
           "None, /) -> None",
           &adagrad_update);
    define(m,
           "rmsprop_update(values: collections.abc.Iterable[numpy.ndarray], grads: "
           "collections.abc.Iterable[numpy.ndarray], squares: collections.abc.Iterable[numpy.ndarray], means: "
           "collections.abc.Iterable[numpy.ndarray] | None, momenta: collections.abc.Iterable[numpy.ndarray] | None, "
           "lr: float, alpha: float, eps: float, weight_decay: float, momentum: float, grad_scale: float, copies: "
           "collections.abc.Iterable[numpy.ndarray | None] | None, /) -> None",
           &rmsprop_update);
    define(m, "global_norm(arrays: collections.abc.Iterable[numpy.ndarray], /) -> float", &global_norm);
}

} // namespace nf::bindings
