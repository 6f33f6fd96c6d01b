"""Attention for JAX: a `custom_vjp` whose halves call numformer on the host, also under `jit`, `grad` and `vmap`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numformer import ops

Options = tuple[tuple[str, Any], ...]


def _statistics(dtype: Any) -> Any:
    return np.float64 if dtype == np.float64 else np.float32


def _forward(q: Any, k: Any, v: Any, mask: Any, options: Options) -> Any:
    shapes = (
        jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype),
        jax.ShapeDtypeStruct(q.shape[:-1], _statistics(q.dtype)),
    )

    def call(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return ops.attention(q, k, v, mask=mask, return_lse=True, **dict(options))

    # vmap puts an axis before all the others, which attention allows any number of.
    return jax.pure_callback(call, shapes, q, k, v, mask, vmap_method="broadcast_all")


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q: Any, k: Any, v: Any, mask: Any, options: Options) -> Any:
    return _forward(q, k, v, mask, options)[0]


def _keep(q: Any, k: Any, v: Any, mask: Any, options: Options) -> Any:
    out, lse = _forward(q, k, v, mask, options)
    return out, (q, k, v, mask, out, lse)


def _backward(options: Options, kept: Any, dout: Any) -> Any:
    q, k, v, mask, out, lse = kept
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v))

    def call(dout: Any, q: Any, k: Any, v: Any, mask: Any, out: Any, lse: Any) -> Any:
        return ops.attention_backward(dout, q, k, v, out, lse, mask=mask, **dict(options))

    grads = jax.pure_callback(call, shapes, dout, q, k, v, mask, out, lse, vmap_method="broadcast_all")
    return (*grads, None)


_attention.defvjp(_keep, _backward)


def attention(q: Any, k: Any, v: Any, *, mask: Any = None, **options: Any) -> Any:
    """Exact attention on JAX arrays, with gradients of q, k and v.

    Parameters
    ----------
    q, k, v : arrays
        (..., H, N, D), (..., Hkv, M, D), (..., Hkv, M, Dv), as in `numformer.attention`; float32, float64, float16 or
        bfloat16.
    mask : boolean array, optional
        True = attend; broadcasts to (..., H, N, M).
    **options
        Of `numformer.attention`, those that are no arrays: causal, window, scale, softcap, dropout with seed. They are
        part of what `jit` compiles.

    Returns
    -------
    array
        (..., H, N, Dv).

    Raises
    ------
    TypeError
        For options that are arrays or unknown.
    ValueError
        For shapes that do not fit. Within `jit` some errors come when the call runs, through JAX.

    Notes
    -----
    `jax.pure_callback` runs on the host: on the CPU, arrays are read where they are, and results copied once.

    Examples
    --------
    >>> import jax
    >>> from numformer.interop.jax import attention
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 4, 16, 8)) for i in range(3))
    >>> gradient = jax.jit(jax.grad(lambda q: attention(q, k, v, causal=True).sum()))(q)
    >>> gradient.shape
    (2, 4, 16, 8)
    """
    for name in options:
        if name not in ("causal", "window", "scale", "softcap", "dropout", "seed"):
            raise TypeError(f"attention: {name} is not an option of numformer.interop.jax.attention")
    if q.ndim < 2 or k.ndim != q.ndim or v.ndim != q.ndim:
        raise ValueError(f"attention: q, k and v must have as many axes, got {q.shape}, {k.shape} and {v.shape}")
    if mask is not None:
        mask = jnp.asarray(mask)
        mask = mask.reshape((1,) * (q.ndim - mask.ndim) + mask.shape)  # so that an axis of vmap is the batch's
    return _attention(q, k, v, mask, tuple(sorted(options.items())))
