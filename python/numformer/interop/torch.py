"""Attention for PyTorch: tensors in the processor's memory go in and come out without a copy, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from numformer import ops


def tensor_of(array: Any) -> Tensor:
    """Return a tensor over the memory of a NumPy array, bfloat16 included."""
    return torch.from_dlpack(ops.to_dlpack(array))


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


class Attention(torch.autograd.Function):  # type: ignore[misc]
    """`numformer.attention` and its backward as one node of PyTorch's graph."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, sinks: Any, options: dict[str, Any]) -> Tensor:
        """Return the output; the log-sum-exps are kept for the backward where a gradient is wanted."""
        a, b, c = map(_plain, (q, k, v))
        options = {name: _plain(value) for name, value in options.items()}
        scores = {"bias": _plain(bias), "sinks": _plain(sinks)}
        if not any(ctx.needs_input_grad):
            return tensor_of(ops.attention(a, b, c, **scores, **options))
        out, lse = (tensor_of(x) for x in ops.attention(a, b, c, **scores, **options, return_lse=True))
        ctx.save_for_backward(q, k, v, bias, sinks, out, lse)
        ctx.options = options
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v, bias and sinks."""
        q, k, v, bias, sinks, out, lse = map(_plain, ctx.saved_tensors)
        wanted = tuple(name for name, at in (("bias", 3), ("sinks", 4)) if ctx.needs_input_grad[at])
        grads = ops.attention_backward(
            dout.detach(), q, k, v, out, lse, bias=bias, sinks=sinks, grads=wanted, **ctx.options
        )
        more = {name: tensor_of(grads[3][name]) for name in wanted}
        return (*map(tensor_of, grads[:3]), more.get("bias"), more.get("sinks"), None)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, sinks: Tensor | None = None, **options: Any
) -> Tensor:
    """Exact attention on CPU tensors, with gradients of q, k, v, `bias` and `sinks`.

    Parameters
    ----------
    q, k, v : tensors
        (..., H, N, D), (..., Hkv, M, D), (..., Hkv, M, Dv), as in `numformer.attention`; float32, float64, float16 or
        bfloat16.
    bias, sinks : tensors, optional
        As there; they get gradients where they require them.
    **options
        The others of `numformer.attention`: causal, window, mask, scale, softcap, alibi_slopes, dropout and seed, ...
        `mask` is boolean, True = attend. `rel` gets no gradient and is refused.

    Returns
    -------
    tensor
        (..., H, N, Dv).

    Raises
    ------
    TypeError, ValueError
        As `numformer.attention`; ValueError for tensors on another device.

    Examples
    --------
    >>> import torch
    >>> from numformer.interop.torch import attention
    >>> q, k, v = (torch.randn(2, 4, 16, 8, requires_grad=True) for _ in range(3))
    >>> attention(q, k, v, causal=True).sum().backward()
    >>> q.grad.shape
    torch.Size([2, 4, 16, 8])
    """
    for name in ("rel", "out", "return_lse"):
        if name in options:
            raise TypeError(f"attention: {name} is not an option of numformer.interop.torch.attention")
    result: Tensor = Attention.apply(q, k, v, bias, sinks, options)
    return result
