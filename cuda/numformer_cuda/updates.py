"""Steps of the optimizers on a GPU, in place: all arrays of a list in one launch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import ref

import numpy as np

from numformer_cuda.arrays import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Array,
    Described,
    array,
    boolean,
    describe,
    empty,
    fail_type,
    fail_value,
    finite,
    floats,
    integer,
    launch,
    namespace,
    number,
    output,
    scratch,
)


class _List(NamedTuple):
    """A list of arrays that is right, as the native module takes it."""

    dtype: Any
    """None where it is empty, or where they are of several."""
    shapes: list[tuple[int, ...] | None]
    described: list[Described | None]


class _Seen:
    """Lists that were checked and described, for as long as they are of the same objects.

    An optimizer brings the same parameters, gradients and moments each step, hundreds of them. No array is kept alive;
    one in its place at the same address is another object.
    """

    MOST = 64

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], tuple[list[Any], _List]] = {}

    def get(self, key: tuple[Any, ...], objects: list[Any]) -> _List | None:
        """Return the list, where it was seen."""
        given, found = self._found.get(key, (None, None))
        if given is None or len(given) != len(objects):
            return None
        for one, x in zip(given, objects, strict=True):
            if x is not (one and one()):
                return None
        return found

    def keep(self, key: tuple[Any, ...], objects: list[Any], found: _List) -> None:
        """Remember a list of arrays of CuPy's and of None."""
        if len(self._found) >= self.MOST:
            self._found.clear()
        self._found[key] = [None if x is None else ref(x) for x in objects], found


_seen = _Seen()


def _list(operation: str, name: str, objects: Any, *, written: bool, dtype: Any = None, update: bool = True) -> _List:
    """Return a list of arrays, for an update all of one dtype; those that are written must be contiguous."""
    if not isinstance(objects, Iterable) or isinstance(objects, (np.ndarray, namespace.ndarray)):
        fail_type(operation, f"{name} must be a list of arrays, got {type(objects).__name__}")
    given = list(objects)
    key = operation, name, dtype, id(given[0]) if given else None, len(given)
    seen = _seen.get(key, given)
    if seen is not None:
        return seen
    found: list[Array] = []
    for index, item in enumerate(given):
        argument = f"{name}[{index}]"
        x = output(operation, argument, item) if written else array(operation, argument, item)
        x = floats(operation, argument, x, layout="any")
        if update and x.dtype not in (FLOAT32, FLOAT64):
            fail_type(operation, f"{argument} must have dtype float32 or float64, got {x.dtype}")
        dtype = dtype or x.dtype
        if update and x.dtype != dtype:
            fail_type(operation, f"{argument} must have the dtype of the first array, {dtype}, got {x.dtype}")
        if not x.flags.c_contiguous:
            fail_value(operation, f"{argument} must be C-contiguous, it is updated in place")
        found.append(x)
    described = _List(found[0].dtype if found else None, [x.shape for x in found], list(map(describe, found)))
    if all(x is item for x, item in zip(found, given, strict=True)):  # and not a copy, or another library's
        _seen.keep(key, given, described)
    return described


class Clip(NamedTuple):
    """A factor on gradients that only the device knows: `scale`, and less where `norm` times it is above `most`.

    Where the norm is not finite, an update changes nothing.
    """

    scale: float
    norm: Array
    most: float


def _scale(operation: str, given: Any) -> tuple[float, Array | None, float]:
    """Return `grad_scale` as kernels take it, a number or a `Clip`."""
    if isinstance(given, Clip):
        return finite(operation, "grad_scale", given.scale), given.norm, given.most
    return finite(operation, "grad_scale", given), None, 0.0


class _Lists:
    """Values, gradients and what a rule keeps, of one dtype."""

    def __init__(self, operation: str, values: Any, grads: Any, copies: Any) -> None:
        self.operation = operation
        self.values = _list(operation, "values", values, written=True)
        self.dtype = self.values.dtype
        self.grads = _list(operation, "grads", grads, written=False, dtype=self.dtype)
        self._require_like("grads", self.grads)
        self.copies = self._copies(copies)

    def kept(self, name: str, objects: Any) -> _List:
        """Return arrays that the rule keeps."""
        found = _list(self.operation, name, objects, written=True, dtype=self.dtype)
        self._require_like(name, found)
        return found

    def _require_like(self, name: str, arrays: _List) -> None:
        if arrays.shapes == self.values.shapes:
            return
        if len(arrays.shapes) != len(self.values.shapes):
            count = len(self.values.shapes)
            fail_value(self.operation, f"{name} must have {count} arrays, as values, got {len(arrays.shapes)}")
        for index, (shape, expected) in enumerate(zip(arrays.shapes, self.values.shapes, strict=True)):
            if shape != expected and shape is not None:
                fail_value(self.operation, f"{name}[{index}] must have shape {expected}, got {shape}")

    def _copies(self, objects: Any) -> _List | None:
        """Return None, or for each value an array of 16 bits or None; they are all of one dtype."""
        name = self.operation
        if objects is None:
            return None
        if not isinstance(objects, Iterable) or isinstance(objects, (np.ndarray, namespace.ndarray)):
            fail_type(name, f"copies must be a list of arrays and None, got {type(objects).__name__}")
        given = list(objects)
        key = name, "copies", self.dtype, *map(id, given[:1]), len(given)
        found = _seen.get(key, given)
        if found is None:
            found = self._check_copies(given)
            if all(item is None or isinstance(item, namespace.ndarray) for item in given):
                _seen.keep(key, given, found)
        self._require_like("copies", found)
        return found

    def _check_copies(self, objects: list[Any]) -> _List:
        name = self.operation
        found: list[Array | None] = []
        dtype = None
        for index, item in enumerate(objects):
            if item is None:
                found.append(None)
                continue
            argument = f"copies[{index}]"
            x = output(name, argument, item)
            fits = x.dtype in (FLOAT16, BFLOAT16) and x.dtype == (dtype or x.dtype)
            if not fits or self.dtype == FLOAT64:
                fail_type(
                    name, f"{argument} must have dtype float16 or bfloat16, one for all, beside float32, got {x.dtype}"
                )
            if not x.flags.c_contiguous:
                fail_value(name, f"{argument} must be C-contiguous, it is written in place")
            dtype = x.dtype
            found.append(x)
        return _List(dtype, [None if x is None else x.shape for x in found], list(map(describe, found)))

    def launch(self, name: str, kept: list[_List | None], *options: Any) -> None:
        """Call the kernel, unless there is nothing to update."""
        if self.values.shapes:
            lists = [self.values, self.grads, *kept, self.copies]
            launch(name, *(None if one is None else one.described for one in lists), *options)


def _not_negative(operation: str, argument: str, value: Any) -> float:
    found = finite(operation, argument, value)
    if found < 0:
        fail_value(operation, f"{argument} must not be negative, got {found}")
    return found


def _below_one(operation: str, argument: str, value: Any) -> float:
    found = number(operation, argument, value)
    if not 0 <= found < 1:
        fail_value(operation, f"{argument} must be in [0, 1), got {found}")
    return found


def sgd_update(
    values: Any,
    grads: Any,
    momenta: Any,
    lr: Any,
    momentum: Any,
    nesterov: Any,
    weight_decay: Any,
    grad_scale: Any,
    copies: Any,
) -> None:
    """See `numformer.sgd_update`."""
    name = "sgd_update"
    lists = _Lists(name, values, grads, copies)
    kept = None if momenta is None else lists.kept("momenta", momenta)
    rate, share = number(name, "lr", lr), number(name, "momentum", momentum)
    if kept is None and share != 0:
        fail_value(name, f"momenta must be given with momentum {share}, got None")
    finite(name, "lr", rate)
    _below_one(name, "momentum", share)
    decay, scale = _not_negative(name, "weight_decay", weight_decay), _scale(name, grad_scale)
    ahead = boolean(name, "nesterov", nesterov)
    if ahead and share == 0:
        fail_value(name, "nesterov needs a momentum above 0, got 0")
    lists.launch(name, [kept], rate, share, ahead, decay, *scale)


def _adam(
    name: str,
    decoupled: bool,
    values: Any,
    grads: Any,
    m: Any,
    v: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    step: Any,
    grad_scale: Any,
    copies: Any,
) -> None:
    lists = _Lists(name, values, grads, copies)
    kept = [lists.kept("m", m), lists.kept("v", v)]
    rate = finite(name, "lr", lr)
    betas = _below_one(name, "beta1", beta1), _below_one(name, "beta2", beta2)
    small, decay = _not_negative(name, "eps", eps), _not_negative(name, "weight_decay", weight_decay)
    count = integer(name, "step", step)
    if count < 1:
        fail_value(name, f"step must be at least 1, got {count}")
    scale, norm, most = _scale(name, grad_scale)
    lists.launch("adam_update", list(kept), rate, *betas, small, decay, count, scale, decoupled, norm, most)


def adam_update(*arguments: Any) -> None:
    """See `numformer.adam_update`."""
    _adam("adam_update", False, *arguments)


def adamw_update(*arguments: Any) -> None:
    """See `numformer.adamw_update`."""
    _adam("adamw_update", True, *arguments)


def adagrad_update(
    values: Any, grads: Any, sums: Any, lr: Any, eps: Any, weight_decay: Any, grad_scale: Any, copies: Any
) -> None:
    """See `numformer.adagrad_update`."""
    name = "adagrad_update"
    lists = _Lists(name, values, grads, copies)
    kept = lists.kept("sums", sums)
    options = finite(name, "lr", lr), _not_negative(name, "eps", eps), _not_negative(name, "weight_decay", weight_decay)
    lists.launch(name, [kept], *options, *_scale(name, grad_scale))


def rmsprop_update(
    values: Any,
    grads: Any,
    squares: Any,
    means: Any,
    momenta: Any,
    lr: Any,
    alpha: Any,
    eps: Any,
    weight_decay: Any,
    momentum: Any,
    grad_scale: Any,
    copies: Any,
) -> None:
    """See `numformer.rmsprop_update`."""
    name = "rmsprop_update"
    lists = _Lists(name, values, grads, copies)
    others = {"squares": squares, "means": means, "momenta": momenta}
    kept = [None if one is None and what != "squares" else lists.kept(what, one) for what, one in others.items()]
    share = number(name, "momentum", momentum)
    if kept[2] is None and share != 0:
        fail_value(name, f"momenta must be given with momentum {share}, got None")
    rate, slow = finite(name, "lr", lr), _below_one(name, "alpha", alpha)
    small, decay = _not_negative(name, "eps", eps), _not_negative(name, "weight_decay", weight_decay)
    _below_one(name, "momentum", share)
    lists.launch(name, kept, rate, slow, small, decay, share, *_scale(name, grad_scale))


def lion_update(
    values: Any,
    grads: Any,
    m: Any,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_scale: Any,
    copies: Any,
) -> None:
    """The step of `numformer.optim.Lion`, which has checked its numbers."""
    name = "lion_update"
    lists = _Lists(name, values, grads, copies)
    lists.launch(name, [lists.kept("m", m)], lr, beta1, beta2, weight_decay, *_scale(name, grad_scale))


def adafactor_update(
    values: Any,
    grads: Any,
    rows: Any,
    columns: Any,
    lr: float,
    share: float,
    rate: float,
    eps1: float,
    eps2: float,
    d: float,
    weight_decay: float,
    grad_scale: Any,
    copies: Any,
) -> None:
    """The step of `numformer.optim.Adafactor`, which has checked its numbers; `rate` is before the parameter's size."""
    name = "adafactor_update"
    lists = _Lists(name, values, grads, copies)
    means = [
        _list(name, what, x, written=True, dtype=lists.dtype) for what, x in (("rows", rows), ("columns", columns))
    ]
    options = lr, share, rate, eps1, eps2, d, weight_decay
    lists.launch(name, list(means), *options, *_scale(name, grad_scale), scratch())


def global_norm(arrays: Any) -> Array:
    """See `numformer.global_norm`; an array of no axes, which its caller waits for when it asks for the number."""
    found = _list("global_norm", "arrays", arrays, written=False, update=False)
    out = empty((), np.float64)
    if found.shapes:
        launch("global_norm", out, found.described, scratch())
    else:
        out.fill(0)
    return out
