#include "bindings/arrays.hpp"
#include "ops/attention.hpp"

#include <tuple>

namespace nf::bindings {
namespace {

// q, k, v and the options that forward and backward share. Views point into the arrays, so this lives as long as the
// call.
struct Call {
    Input q, k, v;
    std::optional<Input> mask;
    ops::Attention attention;

    Call(const char *operation, py::handle q_object, py::handle k_object, py::handle v_object, py::handle causal,
         py::handle window, py::handle mask_object, py::handle scale)
        : q(input(operation, "q", q_object)), k(input(operation, "k", k_object)), v(input(operation, "v", v_object)),
          attention((require_float(operation, "q", q.view), require_same_dtype(operation, "k", k.view, q.view.dtype),
                     require_same_dtype(operation, "v", v.view, q.view.dtype), operation),
                    q.view, k.view, v.view) {
        set_pattern(operation, causal, window);
        mask = optional_input(operation, "mask", mask_object, Layout::any);
        if (mask) {
            if (mask->view.dtype != DType::boolean)
                fail_type(operation,
                          std::string("mask must have dtype bool (True = attend), got ") + name_of(mask->view.dtype));
            attention.set_mask(mask->view);
        }
        if (!scale.is_none()) {
            if (!PyNumber_Check(scale.ptr()))
                fail_type(operation, "scale must be a number");
            attention.set_scale(py::cast<double>(py::float_(py::reinterpret_borrow<py::object>(scale))));
        }
    }

  private:
    void set_pattern(const char *operation, py::handle causal, py::handle window) {
        ops::Causal kind = ops::Causal::no;
        if (py::isinstance<py::bool_>(causal)) {
            kind = py::cast<bool>(causal) ? ops::Causal::bottom_right : ops::Causal::no;
        } else {
            if (!py::isinstance<py::str>(causal))
                fail_type(operation, "causal must be False, True, 'bottom_right' or 'top_left', got " +
                                         py::cast<std::string>(py::repr(causal)));
            const std::string text = py::cast<std::string>(causal);
            if (text != "bottom_right" && text != "top_left")
                fail_value(operation, "causal must be False, True, 'bottom_right' or 'top_left', got " +
                                          py::cast<std::string>(py::repr(causal)));
            kind = text == "top_left" ? ops::Causal::top_left : ops::Causal::bottom_right;
        }
        int64_t sides[2];
        const int64_t *given[2] = {nullptr, nullptr};
        if (!window.is_none()) {
            if (!py::isinstance<py::tuple>(window))
                fail_type(operation,
                          "window must be None or (left, right), got " + py::cast<std::string>(py::repr(window)));
            if (py::len(window) != 2)
                fail_value(operation,
                           "window must be None or (left, right), got " + py::cast<std::string>(py::repr(window)));
            const py::tuple pair = py::reinterpret_borrow<py::tuple>(window);
            for (int side = 0; side < 2; ++side)
                if (!pair[side].is_none()) {
                    if (!PyIndex_Check(py::object(pair[side]).ptr()))
                        fail_type(operation,
                                  "window must hold integers or None, got " + py::cast<std::string>(py::repr(window)));
                    sides[side] = PyNumber_AsSsize_t(py::object(pair[side]).ptr(), nullptr);
                    given[side] = &sides[side];
                }
        }
        attention.set_pattern(kind, given[0], given[1]);
    }
};

// The array given to be written, or a new one.
Input result(const char *operation, const char *argument, py::handle given, const Shape &shape, DType dtype) {
    if (given.is_none())
        return allocate(shape, dtype);
    Input array = output(operation, argument, given);
    require_same_dtype(operation, argument, array.view, dtype);
    if (array.view.shape != shape)
        fail_value(operation, std::string(argument) + " must have shape " + to_string(shape) + ", got " +
                                  to_string(array.view.shape));
    if (array.view.shape.back() > 1 && array.view.strides.back() != 1)
        fail_value(operation, std::string(argument) + " must have unit stride on its last axis");
    return array;
}

void refuse_overlap(const char *operation, const char *argument, const Input &written,
                    std::initializer_list<const Input *> inputs) {
    for (const Input *read : inputs)
        if (may_overlap(written.view, read->view))
            fail_value(operation, std::string(argument) + " must not overlap an input");
}

py::object attention(py::handle q, py::handle k, py::handle v, py::handle causal, py::handle window, py::handle mask,
                     py::handle scale, bool return_lse, py::handle out_object) {
    constexpr const char *kName = "attention";
    Call call(kName, q, k, v, causal, window, mask, scale);
    const Input out = result(kName, "out", out_object, call.attention.out_shape(), call.q.view.dtype);
    if (!out_object.is_none())
        refuse_overlap(kName, "out", out, {&call.q, &call.k, &call.v});
    const Input lse = allocate(call.attention.lse_shape(), call.attention.lse_dtype());
    {
        py::gil_scoped_release release;
        call.attention.forward(out.view, lse.view);
    }
    if (return_lse)
        return py::make_tuple(out.array, lse.array);
    return out.array;
}

py::tuple attention_backward(py::handle dout_object, py::handle q, py::handle k, py::handle v, py::handle out_object,
                             py::handle lse_object, py::handle causal, py::handle window, py::handle mask,
                             py::handle scale, py::handle grads) {
    constexpr const char *kName = "attention_backward";
    Call call(kName, q, k, v, causal, window, mask, scale);
    const DType dtype = call.q.view.dtype;
    auto like = [&](const char *argument, py::handle object, const Shape &shape, DType expected, Layout layout) {
        Input array = input(kName, argument, object, layout);
        require_same_dtype(kName, argument, array.view, expected);
        if (array.view.shape != shape)
            fail_value(kName, std::string(argument) + " must have shape " + to_string(shape) + ", got " +
                                  to_string(array.view.shape));
        return array;
    };
    const Input dout = like("dout", dout_object, call.attention.out_shape(), dtype, Layout::last_axis);
    const Input out = like("out", out_object, call.attention.out_shape(), dtype, Layout::last_axis);
    const Input lse =
        like("lse", lse_object, call.attention.lse_shape(), call.attention.lse_dtype(), Layout::contiguous);
    py::object given[3] = {py::none(), py::none(), py::none()};
    if (!grads.is_none()) {
        if (!py::isinstance<py::tuple>(grads) || py::len(grads) != 3)
            fail_type(kName, "grads must be None or a tuple (dq, dk, dv)");
        for (int i = 0; i < 3; ++i)
            given[i] = py::reinterpret_borrow<py::tuple>(grads)[i];
    }
    const Input dq = result(kName, "grads[0]", given[0], call.q.view.shape, dtype);
    const Input dk = result(kName, "grads[1]", given[1], call.k.view.shape, dtype);
    const Input dv = result(kName, "grads[2]", given[2], call.v.view.shape, dtype);
    for (int i = 0; i < 3; ++i)
        if (!given[i].is_none())
            refuse_overlap(kName, "grads",
                           i == 0   ? dq
                           : i == 1 ? dk
                                    : dv,
                           {&call.q, &call.k, &call.v, &dout, &out, &lse});
    {
        py::gil_scoped_release release;
        call.attention.backward(dout.view, out.view, lse.view, dq.view, dk.view, dv.view);
    }
    return py::make_tuple(dq.array, dk.array, dv.array);
}

} // namespace

void bind_attention(py::module_ &m) {
    m.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("causal"), py::arg("window"),
          py::arg("mask"), py::arg("scale"), py::arg("return_lse"), py::arg("out"));
    m.def("attention_backward", &attention_backward, py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"),
          py::arg("out"), py::arg("lse"), py::arg("causal"), py::arg("window"), py::arg("mask"), py::arg("scale"),
          py::arg("grads"));
}

} // namespace nf::bindings
