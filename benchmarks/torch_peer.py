"""What the PyTorch peers share: weights in numformer's layout, a training step, and training side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def tensor(x: np.ndarray[Any, Any]) -> Tensor:
    """A view of the same memory, also of bfloat16, which neither library hands over."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


class Peer(nn.Module):
    """A model whose weights come from a numformer state dict."""

    def named(self) -> dict[str, tuple[Tensor, bool]]:
        """Parameters by their name in numformer's state dict, and whether they are the transpose of it."""
        raise NotImplementedError

    @torch.no_grad()
    def copy(self, state: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """Take the weights of a numformer model; every one of them must be there."""
        named = self.named()
        if set(named) != set(state):
            raise ValueError(f"the names differ: {sorted(set(named) ^ set(state))}")
        for name, (parameter, transposed) in named.items():
            value = torch.from_numpy(np.array(state[name]))
            parameter.copy_(value.T if transposed else value)
        return self

    def arrays(self, *, gradients: bool = False) -> dict[str, np.ndarray[Any, Any]]:
        """Return the weights, or their gradients, in numformer's layout."""
        result = {}
        for name, (parameter, transposed) in self.named().items():
            tensor = parameter.grad if gradients else parameter.detach()
            assert tensor is not None
            result[name] = (tensor.T if transposed else tensor).numpy().copy()
        return result


class TorchStep:
    """A training step of any model with a loss: gradient, clipping, AdamW with weight decay on matrices only.

    With a dtype as `autocast` products are in that dtype, as PyTorch's recipe of mixed precision says. With `compiled`
    loss and gradient are compiled by `torch.compile` at the first call, for the number of threads that is set then.
    """

    def __init__(
        self,
        model: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.1,
        clip_norm: float | None = 1.0,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.loss = torch.compile(model.loss, dynamic=False) if compiled else model.loss
        self.autocast = autocast
        self.clip_norm = clip_norm
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)

    def __call__(self, *batch: Tensor, lr: float | None = None) -> float:
        """Return the loss before the update; `lr` is the learning rate from now on."""
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        loss = self.gradient(*batch)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    def gradient(self, *batch: Tensor) -> Tensor:
        """Return the loss, having put its gradient into the parameters in place of what they had."""
        self.optimizer.zero_grad(set_to_none=True)
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            loss = self.loss(*batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


def tensors_of(batch: Sequence[np.ndarray[Any, Any]]) -> list[Tensor]:
    """Return arrays of integers as PyTorch reads them."""
    return [torch.from_numpy(array).long() for array in batch]


def train_in_turns(
    steps: int,
    turn: int,
    draw: Callable[[int], Sequence[Any]],
    ours: Callable[[int, Sequence[Any]], Any],
    theirs: Callable[[int, Sequence[Tensor]], Any],
    convert: Callable[[Sequence[Any]], list[Tensor]] = tensors_of,
) -> dict[str, float]:
    """Train both sides on the batches of `draw`, and return the seconds of their steps.

    Each takes `turn` steps before the other goes on, so that a busy neighbour slows both down. PyTorch's batches are
    made by `convert`, outside the time.
    """
    seconds = {"numformer": 0.0, "torch": 0.0}
    for begin in range(0, steps, turn):
        numbers = range(begin, min(begin + turn, steps))
        batches = [draw(step) for step in numbers]
        tensors = [convert(batch) for batch in batches]
        for name, take, given in (("numformer", ours, batches), ("torch", theirs, tensors)):
            time.sleep(0.25)
            start = time.perf_counter()
            for step, batch in zip(numbers, given, strict=True):
                take(step, batch)  # type: ignore[operator]
            seconds[name] += time.perf_counter() - start
    return seconds
