"""Attention on a GPU."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

from numformer_cuda.arrays import (
    BOOL,
    FLOAT32,
    Array,
    array,
    boolean,
    describe,
    empty,
    fail_type,
    fail_value,
    finite,
    floats,
    in_range,
    integer,
    launch,
    number,
    output,
    overlap,
    require_dtype,
    require_shape,
    scratch,
    starts,
    statistics_type,
    text,
    to_device,
    word,
)

_CAUSAL = (False, True, "bottom_right", "top_left")


class _Options(NamedTuple):
    """The options that forward and backward share, in the order in which `numformer.ops` gives them."""

    causal: Any
    window: Any
    mask: Any
    bias: Any
    scale: Any
    softcap: Any
    alibi_slopes: Any
    sinks: Any
    dropout: Any
    seed: Any
    global_tokens: Any
    global_rows: Any
    cu_seqlens_q: Any
    cu_seqlens_k: Any
    rel: Any


class _Call:
    """q, k, v and options, checked; packed arrays (total, heads, size) are views (heads, total, size) here."""

    def __init__(self, operation: str, q: Any, k: Any, v: Any, options: _Options) -> None:
        self.operation = operation
        self.packed = options.cu_seqlens_q is not None
        self.q = self._operand("q", q, None)
        self.k = self._operand("k", k, self.q.dtype)
        self.v = self._operand("v", v, self.q.dtype)
        self._check_shapes()
        self.lse_shape = self.q.shape[:-1]
        self.lse_dtype = statistics_type(self.q.dtype)
        self.out_shape = self.outside((*self.q.shape[:-1], self.v.shape[-1]))
        self.mask: Array | None = None
        self.bias: Array | None = None
        self.alibi_slopes: Array | None = None
        self.sinks: Array | None = None
        self.global_tokens: Array | None = None
        self.rel: tuple[Array, Array, Array, int] | None = None
        self.options: dict[str, Any] = {}
        self._read(options)

    def _operand(self, argument: str, x: Any, dtype: Any) -> Array:
        found = floats(self.operation, argument, x, dtype, layout="last_axis")
        if self.packed and found.ndim != 3:
            fail_value(self.operation, f"{argument} must have shape (total, heads, dim), got {found.shape}")
        return self.inside(found)

    def inside(self, x: Array) -> Array:
        """Return what the caller has as the kernel sees it."""
        return x.swapaxes(0, 1) if self.packed else x

    def outside(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that the caller sees."""
        return (shape[1], shape[0], *shape[2:]) if self.packed else shape

    def _check_shapes(self) -> None:
        name, q, k, v = self.operation, self.q, self.k, self.v
        if q.ndim < 2:
            fail_value(name, f"q must have shape (..., H, N, D), got {q.shape}")
        for argument, x in (("k", k), ("v", v)):
            if x.ndim != q.ndim:
                fail_value(name, f"{argument} must have as many axes as q {q.shape}, got {x.shape}")
        shapes = f", got q {q.shape}, k {k.shape}, v {v.shape}"
        size = q.shape[-1]
        if size == 0:
            fail_value(name, f"q must have a last axis of at least 1, got {q.shape}")
        if k.shape[-1] != size:
            fail_value(name, f"k must have shape (..., Hkv, M, {size}) to match q{shapes}")
        if v.shape[-2] != k.shape[-2]:
            fail_value(name, f"v must have as many rows as k, {k.shape[-2]}{shapes}")
        heads, kv_heads = (x.shape[-3] if q.ndim > 2 else 1 for x in (q, k))
        if q.ndim > 2 and v.shape[-3] != kv_heads:
            fail_value(name, f"v must have as many heads as k, {kv_heads}{shapes}")
        if heads % kv_heads if kv_heads else heads:
            fail_value(name, f"k must have a number of heads that divides q's, {heads}{shapes}")
        for argument, x in (("k", k), ("v", v)):
            if x.shape[:-3] != q.shape[:-3]:
                fail_value(name, f"{argument} must have the leading axes of q{shapes}")
        self.heads = heads

    def _read(self, options: _Options) -> None:
        name, found = self.operation, self.options
        found["causal"], found["window"] = self._pattern(options.causal, options.window)
        if options.mask is not None:
            self.mask = array(name, "mask", options.mask, "any")
            if self.mask.dtype != BOOL:
                fail_type(name, f"mask must have dtype bool (True = attend), got {self.mask.dtype}")
            self._require_broadcast("mask", self.mask)
        if options.bias is not None:
            self.bias = array(name, "bias", options.bias, "any")
            self._require_like_q("bias", self.bias)
            self._require_broadcast("bias", self.bias)
        found["scale"] = finite(name, "scale", self.q.shape[-1] ** -0.5 if options.scale is None else options.scale)
        if options.softcap is not None:
            cap = number(name, "softcap", options.softcap)
            if not (math.isfinite(cap) and cap > 0):
                fail_value(name, f"softcap must be finite and greater than 0, got {cap}")
            found["softcap"] = cap
        for argument in ("alibi_slopes", "sinks"):
            given = getattr(options, argument)
            if given is not None:
                vector = array(name, argument, given)
                self._require_like_q(argument, vector)
                require_shape(name, argument, vector, (self.heads,))
                setattr(self, argument, vector)
        self._read_dropout(options.dropout, options.seed)
        if options.global_tokens is not None:
            self.global_tokens = self._global_tokens(options.global_tokens)
            found["global_rows"] = boolean(name, "global_rows", options.global_rows)
        if options.rel is not None:
            self.rel = self._relative(options.rel)
            *arrays, origin = self.rel
            found["rel"] = (*map(describe, arrays), origin)
        kernel = os.environ.get("NUMFORMER_CUDA_ATTENTION")  # docs/cuda.md
        if kernel:
            found["kernel"] = kernel
        self.starts: list[Array] = []
        if self.packed:
            given = (("cu_seqlens_q", "q", self.q), ("cu_seqlens_k", "k", self.k))
            values = [starts(name, argument, getattr(options, argument), of, x.shape[1]) for argument, of, x in given]
            if len(values[0]) != len(values[1]):
                fail_value(
                    name,
                    f"cu_seqlens_k must have as many elements as cu_seqlens_q, {len(values[0])}, got {len(values[1])}",
                )
            self.starts = [to_device(value) for value in values]
            found["cu_seqlens_q"], found["cu_seqlens_k"] = map(describe, self.starts)
        for argument in ("mask", "bias", "alibi_slopes", "sinks", "global_tokens"):
            if getattr(self, argument) is not None:
                found[argument] = describe(getattr(self, argument))

    def _global_tokens(self, tokens: Any) -> Array:
        name, (queries, keys) = self.operation, (self.q.shape[-2], self.k.shape[-2])
        found = array(name, "global_tokens", tokens, "any")
        if found.dtype != BOOL:
            fail_type(name, f"global_tokens must have dtype bool, got {found.dtype}")
        if queries != keys:
            fail_value(name, f"global_tokens must be None unless q and k have as many rows, got {queries} and {keys}")
        require_shape(name, "global_tokens", found, (*self.q.shape[:-3], queries))
        return found

    def _relative(self, given: Any) -> tuple[Array, Array, Array, int]:
        name, (heads, (n, size), m) = self.operation, (self.heads, self.q.shape[-2:], self.k.shape[-2])
        if not isinstance(given, tuple):
            fail_type(name, f"rel must be None or (r, bias_u, bias_v, origin), got {type(given).__name__}")
        if len(given) != 4:
            fail_value(name, f"rel must be (r, bias_u, bias_v, origin), got {len(given)} elements")
        r = array(name, "rel's r", given[0], "last_axis")
        biases = [array(name, f"rel's {which}", x) for which, x in zip(("bias_u", "bias_v"), given[1:3], strict=True)]
        for which, x in zip(("bias_u", "bias_v"), biases, strict=True):
            self._require_like_q(f"rel's {which}", x)
            require_shape(name, f"rel's {which}", x, (heads, size))
        origin = integer(name, "rel's origin", given[3])
        require_dtype(name, "rel's r", r, self.q.dtype)
        if r.ndim != 3 or r.shape[0] != heads or r.shape[2] != size:
            fail_value(name, f"rel's r must have shape ({heads}, L, {size}), got {r.shape}")
        distances = self._distances(n, m) if heads else None
        if distances is not None:
            nearest, farthest = distances
            if origin + nearest < 0 or origin + farthest >= r.shape[1]:
                fail_value(
                    name,
                    "rel's r must have a row origin + d for each distance d within causal and window, here "
                    f"{nearest} to {farthest}, got {r.shape[1]} rows and origin {origin}",
                )
        # Where no query sees a key, r is not looked at: its origin may be any number.
        return r, biases[0], biases[1], min(max(origin, -(1 << 42)), 1 << 42)

    def _distances(self, n: int, m: int) -> tuple[int, int] | None:
        """Return the smallest and the largest diagonal(i) - j that `causal` and `window` allow; None: no pair."""
        causal, window = self.options["causal"], self.options["window"]
        left, right = (None, None) if window is None or self.global_tokens is not None else window
        diagonal = 0 if causal == "top_left" else m - n
        least = -(1 << 40) if right is None else -right
        least = max(least, 0) if causal else least
        most = 1 << 40 if left is None else left
        # The first query that sees a key sees the nearest one, the last one the farthest.
        first, last = max(0, least - diagonal), min(n, m - diagonal + most) - 1
        if first > last or m == 0:
            return None
        return first + diagonal - min(m - 1, first + diagonal - least), last + diagonal - max(0, last + diagonal - most)

    def _read_dropout(self, dropout: Any, seed: Any) -> None:
        name = self.operation
        share = number(name, "dropout", dropout)
        if share == 0:
            return
        if seed is None:
            fail_value(name, "seed must be given with dropout > 0, got None")
        in_range(name, "dropout", share, 0, 1)
        parts = seed if isinstance(seed, tuple) else (seed, 0, 0, 0)
        if len(parts) != 4:
            fail_value(name, f"seed must be an integer or (seed, layer, step, sample), got {seed!r}")
        names = ("seed", "seed's layer", "seed's step", "seed's sample")
        numbers = [word(name, what, integer(name, what, part)) for what, part in zip(names, parts, strict=True)]
        samples = math.prod(self.q.shape[:-3])
        if samples > 0:
            word(name, "seed's sample + samples", numbers[3] + samples - 1)
        self.options |= {"dropout": share, "seed": tuple(numbers)}

    def _pattern(self, causal: Any, window: Any) -> tuple[Any, Any]:
        name = self.operation
        if not isinstance(causal, (bool, str)):
            fail_type(name, f"causal must be False, True, 'bottom_right' or 'top_left', got {causal!r}")
        if causal not in _CAUSAL:
            fail_value(name, f"causal must be False, True, 'bottom_right' or 'top_left', got {causal!r}")
        if window is None:
            return causal, None
        if not isinstance(window, tuple):
            fail_type(name, f"window must be None or (left, right), got {window!r}")
        if len(window) != 2:
            fail_value(name, f"window must be None or (left, right), got {window!r}")
        sides: list[int | None] = []
        for side, value in zip(("left", "right"), window, strict=True):
            if value is None:
                sides.append(None)
                continue
            try:
                count = value.__index__()
            except Exception:
                fail_type(name, f"window must hold integers or None, got {window!r}")
            if count < 0:
                fail_value(name, f"window must have sides that are None or not negative, got {side} = {count}")
            sides.append(min(count, 1 << 40))  # beyond any number of keys
        return causal, tuple(sides)

    def _require_like_q(self, argument: str, x: Array) -> None:
        half = self.q.dtype.itemsize == 2
        if x.dtype != self.q.dtype and not (half and x.dtype == FLOAT32):
            also = ", or float32" if half else ""
            fail_type(self.operation, f"{argument} must have the dtype of q, {self.q.dtype}{also}, got {x.dtype}")

    def _require_broadcast(self, argument: str, x: Array) -> None:
        full = (*self.q.shape[:-1], self.k.shape[-2])
        sizes = full[len(full) - x.ndim :]
        if x.ndim > len(full) or any(have not in (1, size) for have, size in zip(x.shape, sizes, strict=True)):
            fail_value(self.operation, f"{argument} must broadcast to {full}, got {x.shape}")

    def reads(self) -> list[Array | None]:
        """Return what the kernel reads by address."""
        return [self.q, self.k, self.v, self.mask, self.bias, *(() if self.rel is None else self.rel[:3])]

    def result(self, argument: str, given: Any, shape: tuple[int, ...]) -> Array:
        """Return the array given to be written, or a new one."""
        if given is None:
            return empty(shape, self.q.dtype)
        x = output(self.operation, argument, given)
        require_dtype(self.operation, argument, x, self.q.dtype)
        require_shape(self.operation, argument, x, shape)
        if x.shape[-1] > 1 and x.strides[-1] != x.dtype.itemsize:
            fail_value(self.operation, f"{argument} must have unit stride on its last axis")
        return x

    def refuse_overlap(self, argument: str, written: Array, reads: list[Array | None]) -> None:
        """Refuse to write over what is read."""
        if overlap(written, *reads):
            fail_value(self.operation, f"{argument} must not overlap an input")


def attention(q: Any, k: Any, v: Any, options: tuple[Any, ...], return_lse: bool, out: Any) -> Any:
    """See `numformer.attention` and `numformer.attention_varlen`, whose `cu_seqlens` are on the host."""
    given = _Options(*options)
    call = _Call("attention" if given.cu_seqlens_q is None else "attention_varlen", q, k, v, given)
    result = call.result("out", out, call.out_shape)
    if out is not None:
        call.refuse_overlap("out", result, call.reads())
    lse = empty(call.lse_shape, call.lse_dtype)
    launch("attention", call.inside(result), lse, call.q, call.k, call.v, call.options, scratch())
    return (result, lse) if return_lse else result


def attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    options: tuple[Any, ...],
    dlse: Any,
    grads: Any,
    into: Any,
) -> Any:
    """See `numformer.attention_backward`; `cu_seqlens` of packed sequences are on the host."""
    given = _Options(*options)
    name = "attention_backward" if given.cu_seqlens_q is None else "attention_varlen_backward"
    call = _Call(name, q, k, v, given)

    def like(argument: str, x: Any, shape: tuple[int, ...], dtype: Any, layout: str) -> Array:
        found = array(name, argument, x, layout)
        require_dtype(name, argument, found, dtype)
        require_shape(name, argument, found, shape)
        return found

    dout = call.inside(like("dout", dout, call.out_shape, call.q.dtype, "last_axis"))
    out = call.inside(like("out", out, call.out_shape, call.q.dtype, "last_axis"))
    lse = like("lse", lse, call.lse_shape, call.lse_dtype, "contiguous")
    dlse = None if dlse is None else like("dlse", dlse, call.lse_shape, call.lse_dtype, "contiguous")
    wanted = _wanted(name, grads, call)
    if into is not None and not (isinstance(into, tuple) and len(into) == 3):
        fail_type(name, "into must be None or a tuple (dq, dk, dv)")
    asked = into or (None, None, None)
    shapes = [call.outside(x.shape) for x in (call.q, call.k, call.v)]
    written = [call.result(f"into[{i}]", asked[i], shapes[i]) for i in range(3)]
    for i in range(3):
        if asked[i] is None:
            continue
        call.refuse_overlap(f"into[{i}]", written[i], [*call.reads(), dout, out, lse, dlse])
        for other in range(i):
            # Only the same place is refused: the columns of one array that a layer gives may lie in each other.
            same = written[i].data.ptr == written[other].data.ptr
            if same and overlap(written[i], written[other]):
                fail_value(name, "into must hold three different arrays")
    more = {what: _empty_like(getattr(call, what)) for what in wanted}
    launch(
        "attention_backward",
        *(call.inside(x) for x in written),
        *(dout, call.q, call.k, call.v, out, lse, dlse),
        call.options,
        {what: tuple(map(describe, x)) if what == "rel" else describe(x) for what, x in more.items()},
        scratch(),
    )
    return (*written, more) if len(grads) else tuple(written)


def _empty_like(given: Any) -> Any:
    """Return an array for a gradient; of `rel` three, for its origin has none."""
    return tuple(map(_empty_like, given[:3])) if isinstance(given, tuple) else empty(given.shape, given.dtype)


def _wanted(operation: str, grads: Any, call: _Call) -> list[str]:
    """Return which gradients beside dq, dk and dv are wanted."""
    if not isinstance(grads, (tuple, list)):
        kind = type(grads).__name__
        fail_type(operation, f"grads must be a tuple of names out of 'bias', 'sinks' and 'rel', got {kind}")
    wanted = []
    for item in grads:
        name = text(operation, "grads", item)
        if name not in ("bias", "sinks", "rel"):
            fail_value(operation, f"grads must hold names out of 'bias', 'sinks' and 'rel', got '{name}'")
        if getattr(call, name) is None:
            fail_value(operation, f"grads asks for the gradient of {name}, but {name} is None")
        wanted.append(name)
    return wanted
