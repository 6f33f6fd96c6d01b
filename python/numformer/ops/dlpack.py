"""Arrays across libraries, without a copy: DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import _core
from numformer.ops import dispatch

Array = NDArray[Any]

_CPU = (1, 0)


class Exchange:
    """An array as other libraries take it: ``torch.from_dlpack(exchange)``, ``jax.dlpack.from_dlpack(exchange)``."""

    __slots__ = ("_array",)

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return (1, 0): the processor's memory."""
        return _CPU

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule, as the array API standard describes it.

        Raises
        ------
        BufferError
            For another device, and for a read-only array where the caller knows no version that can say so.
        """
        if dl_device is not None and tuple(map(int, dl_device)) != _CPU:
            raise BufferError(f"to_dlpack: dl_device must be None or {_CPU}, the processor's memory, got {dl_device}")
        if stream is not None:
            raise BufferError(f"to_dlpack: stream must be None for the processor's memory, got {stream!r}")
        array = self._array.copy() if copy else self._array
        versioned = max_version is not None and max_version[0] >= 1
        if not versioned and not array.flags.writeable:
            raise BufferError("to_dlpack: a is read-only, which DLPack before version 1 cannot say; give a copy of it")
        return _core.dlpack_capsule(array, versioned, bool(copy))


def to_dlpack(a: Array) -> Any:
    """Return an object that PyTorch, JAX and others turn into an array of theirs over the same memory.

    For bfloat16, which NumPy's own DLPack does not know; other dtypes go as well.

    Parameters
    ----------
    a : array
        Of any shape and strides; bool, integers, floats, bfloat16 or complex. One on a GPU is returned as it is.

    Returns
    -------
    Exchange
        Has ``__dlpack__`` and ``__dlpack_device__``. The memory lives as long as any array over it.

    Raises
    ------
    TypeError
        For what is no `numpy.ndarray`, and for other dtypes.
    ValueError
        For strides that are not whole elements.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> a = np.arange(3.0)
    >>> np.from_dlpack(nf.to_dlpack(a))  # torch.from_dlpack too, which takes bfloat16 as well
    array([0., 1., 2.])
    """
    if dispatch.backend_of(a) is not None:  # CuPy's arrays speak DLPack
        return a
    if not isinstance(a, np.ndarray):
        raise TypeError(f"to_dlpack: a must be a numpy.ndarray, got {type(a).__name__}")
    _core.dlpack_capsule(a, True, False)  # what cannot be given is refused here, and not in the other library
    return Exchange(a)


def from_dlpack(x: Any) -> Array:
    """Return a NumPy array over the memory of another library's array, without a copy; CuPy's for one on a GPU.

    Functions of numformer take such arrays as they are; this is for what NumPy does to them, bfloat16 included.

    Parameters
    ----------
    x : object with ``__dlpack__``, or a capsule of DLPack
        In the processor's memory, or with `numformer_cuda` on a GPU. PyTorch: a tensor that needs no gradient
        (``tensor.detach()``).

    Returns
    -------
    array
        bfloat16 is that of ml_dtypes. Read-only where `x` says so, and where it cannot say (JAX; DLPack before version
        1). It keeps the memory of `x` alive.

    Raises
    ------
    TypeError
        For what has no ``__dlpack__``, and for dtypes that NumPy lacks.
    ValueError
        For another device, for what its library refuses to give, for a capsule that was used or cannot be true.

    Notes
    -----
    The protocol: https://dmlc.github.io/dlpack/latest/python_spec.html, versions 0 and 1. What a capsule says of
    sizes, strides and dtype is checked; that its pointer leads to them has to be believed.

    Examples
    --------
    >>> import ml_dtypes, numpy as np, numformer as nf
    >>> nf.from_dlpack(nf.to_dlpack(np.arange(3).astype(ml_dtypes.bfloat16)))  # or a tensor of PyTorch
    array([0, 1, 2], dtype=bfloat16)
    """
    if isinstance(x, np.ndarray):
        return x.view()
    return dispatch.core.from_dlpack(x)
