#include "bindings/scalars.hpp"
#include "ops/attention.hpp"

#include <string>
#include <utility>

namespace nf::bindings {
namespace {

// The options that forward and backward share, as they come from Python.
struct Options {
    py::object causal, window, mask, bias, scale, softcap, alibi_slopes, sinks, dropout, seed, global_tokens,
        global_rows, query_starts, key_starts, relative;

    explicit Options(const py::tuple &all)
        : causal(all[0]), window(all[1]), mask(all[2]), bias(all[3]), scale(all[4]), softcap(all[5]),
          alibi_slopes(all[6]), sinks(all[7]), dropout(all[8]), seed(all[9]), global_tokens(all[10]),
          global_rows(all[11]), query_starts(all[12]), key_starts(all[13]), relative(all[14]) {}
};

// q, k, v and the options. Views point into the arrays, so this lives as long as the call.
struct Call {
    bool packed; // (total, heads, dim), which the operation sees as (heads, total, dim)
    Input q, k, v;
    std::optional<Input> mask, bias, slopes, sinks;
    std::optional<Input> relative, bias_u, bias_v;                          // of relative positions
    std::optional<py::array> slope_values, sink_values, u_values, v_values; // in float64
    ops::Attention attention;

    Call(const char *operation, py::handle q_object, py::handle k_object, py::handle v_object, const Options &options)
        : packed(!options.query_starts.is_none()), q(operand(operation, "q", q_object)),
          k(operand(operation, "k", k_object)), v(operand(operation, "v", v_object)),
          attention((require_float(operation, "q", q.view), require_same_dtype(operation, "k", k.view, q.view.dtype),
                     require_same_dtype(operation, "v", v.view, q.view.dtype), operation),
                    q.view, k.view, v.view) {
        set_pattern(operation, options.causal, options.window);
        mask = optional_input(operation, "mask", options.mask, Layout::any);
        if (mask) {
            if (mask->view.dtype != DType::boolean)
                fail_type(operation,
                          std::string("mask must have dtype bool (True = attend), got ") + name_of(mask->view.dtype));
            attention.set_mask(mask->view);
        }
        bias = optional_input(operation, "bias", options.bias, Layout::any);
        if (bias)
            attention.set_bias(bias->view);
        if (!options.scale.is_none())
            attention.set_scale(number(operation, "scale", options.scale));
        if (!options.softcap.is_none())
            attention.set_softcap(number(operation, "softcap", options.softcap));
        slopes = per_head(operation, "alibi_slopes", options.alibi_slopes, slope_values);
        if (slopes)
            attention.set_slopes(static_cast<const double *>(slope_values->data()));
        sinks = per_head(operation, "sinks", options.sinks, sink_values);
        if (sinks)
            attention.set_sinks(static_cast<const double *>(sink_values->data()));
        const double dropout = number(operation, "dropout", options.dropout);
        if (dropout != 0) {
            if (options.seed.is_none())
                fail_value(operation, "seed must be given with dropout > 0, got None");
            attention.set_dropout(dropout, seed_of(operation, options.seed));
        }
        if (!options.global_tokens.is_none()) {
            const Input tokens = input(operation, "global_tokens", options.global_tokens, Layout::any);
            if (tokens.view.dtype != DType::boolean)
                fail_type(operation,
                          std::string("global_tokens must have dtype bool, got ") + name_of(tokens.view.dtype));
            attention.set_global_tokens(tokens.view, boolean(operation, "global_rows", options.global_rows));
        }
        if (packed)
            attention.set_sequences(input(operation, "cu_seqlens_q", options.query_starts, Layout::contiguous).view,
                                    input(operation, "cu_seqlens_k", options.key_starts, Layout::contiguous).view);
        if (!options.relative.is_none())
            set_relative(operation, options.relative);
    }

    // Of (heads, total, dim) the shape that the caller sees, and back.
    Shape outside(Shape shape) const {
        if (packed)
            std::swap(shape[0], shape[1]);
        return shape;
    }
    Input inside(Input array) const {
        if (packed) {
            std::swap(array.view.shape[0], array.view.shape[1]);
            std::swap(array.view.strides[0], array.view.strides[1]);
        }
        return array;
    }

  private:
    Input operand(const char *operation, const char *argument, py::handle object) const {
        Input array = input(operation, argument, object);
        if (packed && array.view.ndim() != 3)
            fail_value(operation, std::string(argument) + " must have shape (total, heads, dim), got " +
                                      to_string(array.view.shape));
        return inside(std::move(array));
    }

    std::optional<Input> per_head(const char *operation, const char *argument, py::handle object,
                                  std::optional<py::array> &values) {
        std::optional<Input> given = optional_input(operation, argument, object, Layout::any);
        if (given) {
            attention.check_per_head(argument, given->view);
            values = in_float64(*given);
        }
        return given;
    }
    static py::array in_float64(const Input &given) {
        return py::array(py::object(given.array.attr("astype")("float64", py::arg("order") = "C")));
    }

    void set_relative(const char *operation, const py::object &given) {
        if (!py::isinstance<py::tuple>(given))
            fail_type(operation, "rel must be None or (r, bias_u, bias_v, origin), got " + type_name(given));
        const py::tuple parts = py::reinterpret_borrow<py::tuple>(given);
        if (py::len(parts) != 4)
            fail_value(operation,
                       "rel must be (r, bias_u, bias_v, origin), got " + std::to_string(py::len(parts)) + " elements");
        relative = input(operation, "rel's r", py::object(parts[0]), Layout::last_axis);
        bias_u = input(operation, "rel's bias_u", py::object(parts[1]), Layout::any);
        bias_v = input(operation, "rel's bias_v", py::object(parts[2]), Layout::any);
        attention.check_relative_bias("rel's bias_u", bias_u->view);
        attention.check_relative_bias("rel's bias_v", bias_v->view);
        u_values = in_float64(*bias_u);
        v_values = in_float64(*bias_v);
        attention.set_relative(relative->view, static_cast<const double *>(u_values->data()),
                               static_cast<const double *>(v_values->data()),
                               integer(operation, "rel's origin", py::object(parts[3])));
    }

    static ops::AttentionSeed seed_of(const char *operation, const py::object &seed) {
        if (!py::isinstance<py::tuple>(seed))
            return {integer(operation, "seed", seed), 0, 0, 0};
        const py::tuple parts = py::reinterpret_borrow<py::tuple>(seed);
        if (py::len(parts) != 4)
            fail_value(operation, "seed must be an integer or (seed, layer, step, sample), got " +
                                      py::cast<std::string>(py::repr(seed)));
        return {integer(operation, "seed", py::object(parts[0])),
                integer(operation, "seed's layer", py::object(parts[1])),
                integer(operation, "seed's step", py::object(parts[2])),
                integer(operation, "seed's sample", py::object(parts[3]))};
    }

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
                    sides[side] = PyNumber_AsSsize_t(py::object(pair[side]).ptr(), nullptr); // what is larger: the most
                    if (PyErr_Occurred()) {
                        PyErr_Clear();
                        fail_type(operation,
                                  "window must hold integers or None, got " + py::cast<std::string>(py::repr(window)));
                    }
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

// Of what is read by address: null for what was not given. Other options were copied.
void refuse_overlap(const char *operation, const std::string &argument, const Input &written,
                    std::initializer_list<const View *> inputs) {
    for (const View *read : inputs)
        if (read && may_overlap(written.view, *read))
            fail_value(operation, argument + " must not overlap an input");
}

py::object attention(py::handle q, py::handle k, py::handle v, const py::tuple &options, bool return_lse,
                     py::handle out_object) {
    const Options given(options);
    const char *kName = given.query_starts.is_none() ? "attention" : "attention_varlen";
    Call call(kName, q, k, v, given);
    const Input out =
        call.inside(result(kName, "out", out_object, call.outside(call.attention.out_shape()), call.q.view.dtype));
    if (!out_object.is_none())
        refuse_overlap(kName, "out", out,
                       {&call.q.view, &call.k.view, &call.v.view, pointer_to(call.mask), pointer_to(call.bias),
                        pointer_to(call.relative)});
    const Input lse = allocate(call.attention.lse_shape(), call.attention.lse_dtype());
    {
        py::gil_scoped_release release;
        call.attention.forward(out.view, lse.view);
    }
    if (return_lse)
        return py::make_tuple(out.array, lse.array);
    return out.array;
}

// Which gradients beside dq, dk and dv are wanted.
struct Wanted {
    bool bias = false, sinks = false, relative = false;
};
Wanted wanted_gradients(const char *operation, const py::object &names, const Call &call) {
    Wanted wanted;
    if (!py::isinstance<py::tuple>(names) && !py::isinstance<py::list>(names))
        fail_type(operation,
                  "grads must be a tuple of names out of 'bias', 'sinks' and 'rel', got " + type_name(names));
    for (py::handle item : names) {
        const std::string name = text(operation, "grads", item);
        bool *asked = name == "bias" ? &wanted.bias : name == "sinks" ? &wanted.sinks : &wanted.relative;
        if (asked == &wanted.relative && name != "rel")
            fail_value(operation, "grads must hold names out of 'bias', 'sinks' and 'rel', got '" + name + "'");
        if (!(name == "bias" ? call.bias : name == "sinks" ? call.sinks : call.relative))
            fail_value(operation, "grads asks for the gradient of " + name + ", but " + name + " is None");
        *asked = true;
    }
    return wanted;
}

py::object attention_backward(py::handle dout_object, py::handle q, py::handle k, py::handle v, py::handle out_object,
                              py::handle lse_object, const py::tuple &options, py::handle dlse_object,
                              const py::object &grads, py::handle to) {
    const Options all(options);
    const char *kName = all.query_starts.is_none() ? "attention_backward" : "attention_varlen_backward";
    Call call(kName, q, k, v, all);
    const DType dtype = call.q.view.dtype;
    auto like = [&](const char *argument, py::handle object, const Shape &shape, DType expected, Layout layout) {
        Input array = input(kName, argument, object, layout);
        require_same_dtype(kName, argument, array.view, expected);
        if (array.view.shape != shape)
            fail_value(kName, std::string(argument) + " must have shape " + to_string(shape) + ", got " +
                                  to_string(array.view.shape));
        return array;
    };
    const Shape lse_shape = call.attention.lse_shape();
    const DType lse_dtype = call.attention.lse_dtype();
    const Shape out_shape = call.outside(call.attention.out_shape());
    const Input dout = call.inside(like("dout", dout_object, out_shape, dtype, Layout::last_axis));
    const Input out = call.inside(like("out", out_object, out_shape, dtype, Layout::last_axis));
    const Input lse = like("lse", lse_object, lse_shape, lse_dtype, Layout::contiguous);
    std::optional<Input> dlse;
    if (!dlse_object.is_none())
        dlse = like("dlse", dlse_object, lse_shape, lse_dtype, Layout::contiguous);
    const Wanted wanted = wanted_gradients(kName, grads, call);
    py::object given[3] = {py::none(), py::none(), py::none()};
    if (!to.is_none()) {
        if (!py::isinstance<py::tuple>(to) || py::len(to) != 3)
            fail_type(kName, "into must be None or a tuple (dq, dk, dv)");
        for (int i = 0; i < 3; ++i)
            given[i] = py::reinterpret_borrow<py::tuple>(to)[i];
    }
    const Input dq = call.inside(result(kName, "into[0]", given[0], call.outside(call.q.view.shape), dtype));
    const Input dk = call.inside(result(kName, "into[1]", given[1], call.outside(call.k.view.shape), dtype));
    const Input dv = call.inside(result(kName, "into[2]", given[2], call.outside(call.v.view.shape), dtype));
    const Input *written[3] = {&dq, &dk, &dv};
    for (int i = 0; i < 3; ++i)
        if (!given[i].is_none()) {
            refuse_overlap(kName, "into[" + std::to_string(i) + "]", *written[i],
                           {&call.q.view, &call.k.view, &call.v.view, &dout.view, &out.view, &lse.view,
                            pointer_to(dlse), pointer_to(call.mask), pointer_to(call.bias), pointer_to(call.relative)});
            for (int other = 0; other < i; ++other)
                // Only the same place is refused: the columns of one array that a layer gives may lie in each other.
                if (written[i]->view.data == written[other]->view.data &&
                    may_overlap(written[i]->view, written[other]->view))
                    fail_value(kName, "into must hold three different arrays");
        }
    ops::AttentionGradients more;
    std::optional<Input> dbias, dsinks;
    if (wanted.bias) {
        dbias = allocate(call.bias->view.shape, call.bias->view.dtype);
        more.dbias = dbias->view;
    }
    if (wanted.sinks) {
        dsinks = allocate(call.sinks->view.shape, DType::f64);
        more.dsinks = reinterpret_cast<double *>(dsinks->view.data);
    }
    std::optional<Input> dr, dbias_u, dbias_v;
    if (wanted.relative) {
        dr = allocate(call.relative->view.shape, dtype);
        dbias_u = allocate(call.bias_u->view.shape, DType::f64);
        dbias_v = allocate(call.bias_v->view.shape, DType::f64);
        more.dr = dr->view;
        more.dbias_u = reinterpret_cast<double *>(dbias_u->view.data);
        more.dbias_v = reinterpret_cast<double *>(dbias_v->view.data);
    }
    {
        py::gil_scoped_release release;
        call.attention.backward(dout.view, out.view, lse.view, pointer_to(dlse), dq.view, dk.view, dv.view, more);
    }
    if (py::len(grads) == 0)
        return py::make_tuple(dq.array, dk.array, dv.array);
    py::dict named;
    if (dbias)
        named["bias"] = dbias->array;
    if (dsinks)
        named["sinks"] = dsinks->array.attr("astype")(dtype_of(call.sinks->view.dtype));
    if (dr)
        named["rel"] = py::make_tuple(dr->array, dbias_u->array.attr("astype")(dtype_of(call.bias_u->view.dtype)),
                                      dbias_v->array.attr("astype")(dtype_of(call.bias_v->view.dtype)));
    return py::make_tuple(dq.array, dk.array, dv.array, named);
}

} // namespace

void bind_attention(py::module_ &m) {
    define(m,
           "attention(q: numpy.ndarray, k: numpy.ndarray, v: numpy.ndarray, options: tuple[typing.Any, ...], "
           "return_lse: bool, out: numpy.ndarray | None) -> typing.Any",
           &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("options"), py::arg("return_lse"),
           py::arg("out"));
    define(m,
           "attention_backward(dout: numpy.ndarray, q: numpy.ndarray, k: numpy.ndarray, v: numpy.ndarray, out: "
           "numpy.ndarray, lse: numpy.ndarray, options: tuple[typing.Any, ...], dlse: numpy.ndarray | None, grads: "
           "tuple[str, ...], into: tuple[numpy.ndarray | None, numpy.ndarray | None, numpy.ndarray | None] | None) -> "
           "typing.Any",
           &attention_backward, py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
           py::arg("lse"), py::arg("options"), py::arg("dlse"), py::arg("grads"), py::arg("into"));
}

} // namespace nf::bindings
