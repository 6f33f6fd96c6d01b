"""A named array that is trained, and its gradient."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.ops.memory import empty, is_writeable, moved, namespace
from numformer.ops.packed_matrix import PackedMatrix


class Draft:
    """A gradient that is there before its backward runs: see :meth:`Parameter.draft`."""

    __slots__ = ("__weakref__", "array")

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class Parameter:
    """A value and its gradient.

    The first gradient of a step is written into `grad`, later ones are added, so nothing is ever set to zero. `fresh`
    says that the next one is the first. A use in a forward pass counts up, its backward counts down: at zero the
    gradient of the pass is complete, also where two layers share the parameter, and `on_complete` is called.

    Mixed precision reads a matrix rounded to 16 bits. With :meth:`keep` that copy is made once a step, in the sweep of
    the optimizer, instead of at every use. Inference may read a packed copy, see :meth:`pack`. Whoever else writes into
    `value` while there are copies says so by :meth:`changed`.

    Parameters
    ----------
    value : array
        What is trained; C-contiguous, on a GPU after :meth:`to`. Read-only where it lies in a file, until :meth:`own`.
    name : str
        Its name in the state dict; set by the model.
    """

    __slots__ = (
        "_copy",
        "_draft",
        "_kept",
        "_packed",
        "_stale",
        "_value",
        "fresh",
        "grad",
        "name",
        "on_complete",
        "pending",
    )

    def __init__(self, value: NDArray[Any], name: str = "") -> None:
        self.name = name
        self._value: NDArray[Any] | None = np.ascontiguousarray(value)
        self._kept: np.dtype[Any] | None = None
        self._copy: NDArray[Any] | None = None
        self._stale = True
        self._packed: dict[bool, PackedMatrix] = {}
        self.grad: NDArray[Any] | None = None
        self.fresh = True
        self.pending = 0
        self.on_complete: Callable[[Parameter], None] | None = None
        self._draft: weakref.ref[Draft] | None = None

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.value.shape}, dtype={self.value.dtype})"

    @property
    def value(self) -> NDArray[Any]:
        """What is trained; after :meth:`release` it is made again here."""
        value = self._value  # read once: another thread may release it
        if value is None:
            transposed, packed = next(iter(self._packed.items()))
            matrix = packed.unpack()
            matrix = np.ascontiguousarray(matrix.T if transposed else matrix)
            kind = np.dtype(packed.stored)
            self._value = value = matrix if matrix.dtype == kind else ops.cast(matrix, kind)
        return value

    @value.setter
    def value(self, value: NDArray[Any]) -> None:
        self._value = value
        self.changed()

    def own(self, *, copy: bool = True) -> None:
        """Make the value an array that can be written: of one that was read-only (a file) a copy, or an empty one."""
        if not is_writeable(self.value):
            self.value = self.value.copy() if copy else np.empty_like(self.value)

    def to(self, device: str) -> None:
        """Have value and gradient on a device, "cpu" or "cuda"; copies are made where they are elsewhere."""
        self._value = moved(self.value, device)
        self._copy = None
        self.changed()
        if self.grad is not None:
            self.grad = moved(self.grad, device)

    def use(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Count one use in a training pass, which lets packed copies go, and return the value to compute with."""
        self.pending += 1
        self.unpack()  # the value is about to change
        return self.read(dtype)

    def read(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the value to compute with beside arrays of `dtype`.

        Where either is a 16-bit float (mixed precision) matrices are rounded to `dtype`; vectors, which are biases and
        weights of norms, stay as they are: kernels take float32 ones beside 16 bits.
        """
        value = self._value
        if value is None:
            value = self.value
        if value.dtype == dtype or 2 not in (dtype.itemsize, value.itemsize):
            return value
        if value.ndim < 2 and value.dtype == np.float32:
            return value
        if self._kept != dtype:
            return ops.cast(value, dtype)
        if self._copy is None:
            self._copy, self._stale = empty(value.shape, dtype, like=value), True
        if self._stale:
            ops.cast(value, dtype, out=self._copy)
            self._stale = False
        return self._copy

    def table(self, dtype: np.dtype[Any] | None) -> NDArray[Any]:
        """Return the value for reading some of its rows: rounded to `dtype` where that is at hand."""
        fits = self._copy is not None and not self._stale and self._copy.dtype == dtype
        return self._copy if fits and self._copy is not None else self.value

    def keep(self, dtype: np.dtype[Any] | None) -> None:
        """Keep the value rounded to `dtype` beside it, from the first time that is read on; None: no longer."""
        if dtype != self._kept:
            self._copy = None
        self._kept = dtype if dtype is not None and dtype.itemsize == 2 else None
        self._stale = True

    @property
    def copy(self) -> NDArray[Any] | None:
        """The rounded value that is kept and was read: what an update writes too, and then calls :meth:`stored`."""
        return self._copy

    def stored(self) -> None:
        """Say that `value` was written into, and the copy with it."""
        self.changed()
        self._stale = False

    def changed(self) -> None:
        """Say that `value` was written into, so that copies are no longer those of it."""
        self._stale = True
        self.unpack()

    def pack(self, dtype: DTypeLike | None = None, *, transposed: bool = False) -> None:
        """Keep a packed copy of the matrix, or of its transpose, until the value changes; see `PackedMatrix`.

        It is here and not in a layer so that layers that share a weight see the same, whichever of them is trained.
        """
        self._packed[transposed] = PackedMatrix(self.value.T if transposed else self.value, dtype)

    def packed(self, *, transposed: bool = False) -> PackedMatrix | None:
        """Return the packed copy of the matrix, or of its transpose, where there is one."""
        return self._packed.get(transposed)

    def unpack(self) -> None:
        """Let the packed copies go."""
        if self._packed:
            _ = self.value  # which may be in them only
            self._packed.clear()

    def release(self) -> None:
        """Let the value go where a packed copy holds the same numbers; who asks for it makes it again."""
        if self._packed and all(packed.stored == self.value.dtype.name for packed in self._packed.values()):
            self._value = None

    def buffer(self) -> NDArray[Any]:
        """Return the array of the gradient; `fresh` says whether to write or to add; follow with :meth:`done`."""
        grad = self.grad
        if grad is None:
            grad = self.grad = namespace(self.value).empty_like(self.value)
        if self._draft is not None:
            draft, self._draft = self._draft(), None
            if draft is not None:  # its backward is still to come, and now finds another's gradient here
                draft.array = grad.copy()
        return grad

    def draft(self) -> Draft:
        """Return an array for a gradient that is made in the forward pass; follow with :meth:`settle` in the backward.

        It is the array of the gradient itself where that holds nothing: a large one is made where it belongs. Where
        the backward never runs, nothing has happened.
        """
        if self.fresh and (self._draft is None or self._draft() is None):
            draft = Draft(self.buffer())
            self._draft = weakref.ref(draft)
            return draft
        return Draft(empty(self.value.shape, self.value.dtype, like=self.value))

    def settle(self, draft: Draft, scale: float = 1.0) -> None:
        """Write or add `scale` times a draft, which is used up."""
        if self._draft is not None and self._draft() is draft:
            self._draft = None
            if scale != 1.0:
                ops.cast(draft.array, draft.array.dtype, scale=scale, out=draft.array)
        elif self.fresh:
            ops.cast(draft.array, draft.array.dtype, scale=scale, out=self.buffer())
        else:  # grad += scale * draft is a step of gradient descent
            ops.sgd_update([self.buffer()], [draft.array], None, lr=-scale)
        self.done()

    def done(self) -> None:
        """Say that one use has left its gradient."""
        self.fresh = False
        self.pending -= 1
        if self.pending == 0 and self.on_complete is not None:
            self.on_complete(self)

    def add(self, gradient: NDArray[Any]) -> None:
        """Write or add a gradient that has an array of its own."""
        grad = self.buffer()
        if self.fresh:
            grad[...] = gradient
        else:
            grad += gradient
        self.done()

    def reset(self) -> None:
        """Begin a new step: the next gradient is written over this one."""
        self.fresh = True
        self.pending = 0
