"""What the optimizers share: groups of parameters, clipping, state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops, profiling
from numformer.nn import Parameter
from numformer.ops import dispatch
from numformer.ops.memory import assign, check_device, moved, namespace, numbers, on_host
from numformer.optim.shards import Part, Shards, cut

Array = NDArray[Any]


@dataclass
class Group:
    """Parameters that share a weight decay, and a factor on the learning rate."""

    parameters: list[Parameter]
    weight_decay: float = 0.0
    lr_factor: float = 1.0


def decay_groups(parameters: Iterable[Parameter], weight_decay: float) -> list[Group]:
    """Return two groups: matrices with weight decay, vectors (biases, norms) without."""
    every = list(parameters)
    return [
        Group([p for p in every if p.value.ndim > 1], weight_decay),
        Group([p for p in every if p.value.ndim <= 1], 0.0),
    ]


def number(owner: str, name: str, value: float, low: float = 0.0, high: float = math.inf) -> float:
    """Check an option: a finite number in [low, high)."""
    if not (math.isfinite(value) and low <= value < high):
        limit = f"at least {low:g}" + ("" if math.isinf(high) else f" and below {high:g}")
        raise ValueError(f"{owner}: {name} must be {limit}, got {value}")
    return float(value)


def copy_state(owner: str, own: Mapping[str, Array], state: Mapping[str, Array]) -> None:
    """Copy a state into one's own arrays; ValueError names the entries that do not fit, and nothing was changed."""
    wrong = [f"missing {name}" for name in own if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in own]
    for name, array in own.items():
        if name in state:
            given = np.asarray(on_host(state[name]))
            if given.shape != array.shape:
                wrong.append(f"{name} must have shape {array.shape}, got {given.shape}")
            elif given.dtype != array.dtype:
                wrong.append(f"{name} must be {array.dtype}, got {given.dtype}")
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(f"load_state_dict: the entries do not fit {owner}: {shown}")
    for name, array in own.items():
        assign(array, state[name])


def store_copies(values: list[Array], copies: list[Array | None] | None) -> None:
    """Round values to their copies: for a rule that has no kernel which does it in its sweep."""
    for value, copy in zip(values, copies or [], strict=copies is not None):
        if copy is not None:
            ops.cast(value, copy.dtype, out=copy)


class Launched:
    """A step that was made, or that a GPU is at.

    Attributes
    ----------
    loss : float or None
        That which `Optimizer.launch` was given, once the step is finished.
    """

    def __init__(self, optimizer: Optimizer, norm: Any, scale: float, loss: Any, updated: list[int]) -> None:
        self._optimizer, self._norm, self._scale, self._updated = optimizer, norm, scale, updated
        self.loss = loss

    def finish(self) -> float | None:
        """Wait for the step, and return the norm of the gradients before clipping, where there is clipping.

        Raises
        ------
        FloatingPointError
            Where the loss, or the norm that was asked for, is NaN or infinite; nothing was changed.
        """
        found = iter(numbers([x for x in (self.loss, self._norm) if x is not None]))
        self.loss = None if self.loss is None else next(found)
        norm = None if self._norm is None else self._scale * next(found)
        try:
            if self.loss is not None and not math.isfinite(self.loss):
                raise FloatingPointError(f"the loss is {self.loss}")
            if norm is not None:
                self._optimizer._require_finite(norm)
        except FloatingPointError:
            self._optimizer._undo(self._updated)
            raise
        return None if self._optimizer.clip_norm is None else norm


class Optimizer:
    """The base of optimizers.

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Learning rate.
    weight_decay : float
        Of parameters that are given without a group.
    clip_norm : float, optional
        Gradients whose norm, over all parameters, is above it are scaled down to it (Pascanu, Mikolov, Bengio, 2013),
        in the pass that updates.
    """

    slots: tuple[str, ...] = ()
    """Names of the arrays that are kept for each parameter."""
    elementwise: bool = True
    """Whether each number is updated by itself, so that a part of a parameter can be."""

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float,
        weight_decay: float,
        clip_norm: float | None,
    ) -> None:
        owner = type(self).__name__
        self.lr = number(owner, "lr", lr)
        weight_decay = number(owner, "weight_decay", weight_decay)
        if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
            raise ValueError(f"{owner}: clip_norm must be above 0, got {clip_norm}")
        self.clip_norm = clip_norm
        given: list[Any] = list(parameters)
        loose = [item for item in given if isinstance(item, Parameter)]
        self.groups = [item for item in given if isinstance(item, Group) and item.parameters]
        if len(loose) + sum(isinstance(item, Group) for item in given) != len(given) or not given:
            raise TypeError(f"{owner}: parameters must be a list of Parameter or of Group, not empty")
        for group in self.groups:
            number(owner, "weight_decay of a group", group.weight_decay)
            number(owner, "lr_factor of a group", group.lr_factor)
        if loose:
            self.groups.append(Group(loose, weight_decay))
        self.parameters = [p for group in self.groups for p in group.parameters]
        if len({id(p) for p in self.parameters}) != len(self.parameters):
            raise ValueError(f"{owner}: a parameter is given twice")
        for parameter in self.parameters:
            if parameter.value.dtype.itemsize == 2:
                raise TypeError(
                    f"{owner}: parameters must be float32 or float64, got {parameter.value.dtype} for "
                    f"{parameter.name or 'one'}: read the model in float32 and compute in 16 bits by Trainer(dtype=...)"
                )
            parameter.own()
        self.steps = 0
        self._counts = np.zeros(len(self.parameters), np.int64)
        """Updates of each parameter: fewer than `steps` where it was without a gradient."""
        self._state = {slot: [self._new_state(slot, p.value) for p in self.parameters] for slot in self.slots}
        self._shards: Shards | None = None
        self._parts = [Part(slice(0, p.value.size), p.value.size) for p in self.parameters]
        self._shapes = {slot: [array.shape for array in arrays] for slot, arrays in self._state.items()}

    def _new_state(self, slot: str, value: Array) -> Array:
        """Return what is kept of a parameter before its first step."""
        zeros: Array = namespace(value).zeros(value.shape, value.dtype)  # NumPy's take memory when first written
        return zeros

    def to(self, device: str) -> None:
        """Have what is kept of the parameters on a device, "cpu" or "cuda", as `Module.to` has the parameters."""
        check_device(type(self).__name__, device)
        for arrays in self._state.values():
            arrays[:] = [moved(array, device) for array in arrays]

    def shard(self, shards: Shards) -> None:
        """Keep the state of one's own pieces of the parameters only, and update these; `shards` brings them together.

        From then on :meth:`step`, :meth:`gradient_norm` and :meth:`state_dict` are called by all that have pieces. The
        state is whole where a checkpoint is written, and a whole one is loaded.
        """
        if self._shards is not None:
            raise ValueError(f"{type(self).__name__}: its state is divided already")
        self._shards = shards
        self._parts = [Part(shards.piece(p), p.value.size) for p in self.parameters]
        for arrays in self._state.values():
            arrays[:] = [part.of(array).copy() for part, array in zip(self._parts, arrays, strict=True)]

    def gradient_norm(self) -> float:
        """Return the norm of the gradients over all parameters that have one."""
        given = zip(self._parts, self.parameters, strict=True)
        grads = [part.of(p.buffer()) for part, p in given if not (p.fresh or part.empty)]
        norm = float(ops.global_norm(grads)) if grads else 0.0
        return norm if self._shards is None else self._shards.norm(norm)

    def step(self, lr: float | None = None, *, grad_scale: float = 1.0) -> float | None:
        """Update the parameters that have a gradient, and begin a new step.

        Parameters
        ----------
        lr : float, optional
            Instead of the learning rate of the optimizer.
        grad_scale : float
            What the gradients are to be multiplied by: 1 / the scale of the loss, where that was scaled.

        Returns
        -------
        float or None
            Norm of the gradients before clipping, where there is clipping.

        Raises
        ------
        FloatingPointError
            Where that norm is NaN or infinite; nothing was changed.
        """
        return self.launch(lr, grad_scale=grad_scale).finish()

    def launch(
        self, lr: float | None = None, *, grad_scale: float = 1.0, loss: Any = None, check: bool = False
    ) -> Launched:
        """Make a step that a GPU need not be waited for.

        Parameters
        ----------
        lr, grad_scale
            As of :meth:`step`.
        loss : array of no axes, optional
            On the GPU where the parameters are. Where it turns out not to be finite, nothing is changed.
        check : bool
            Whether nothing is to be changed where the norm of the gradients is not finite, without clipping too.

        Returns
        -------
        Launched
            Whose ``finish`` is to be called.

        Raises
        ------
        FloatingPointError
            On the CPU where that norm is not finite; on a GPU ``finish`` raises it.
        """
        lr = self.lr if lr is None else lr
        norm, scale = self._clipped(grad_scale, loss, check)
        self.steps += 1
        updated: list[int] = []
        first = 0
        for group in self.groups:
            batches: dict[tuple[np.dtype[Any], int], list[tuple[int, Parameter]]] = {}
            for index, parameter in enumerate(group.parameters, first):
                if not parameter.fresh:
                    self._counts[index] += 1
                    updated.append(index)
                    key = parameter.value.dtype, int(self._counts[index])
                    if not self._parts[index].empty:
                        batches.setdefault(key, []).append((index, parameter))
                    parameter.fresh = True
                parameter.pending = 0
            first += len(group.parameters)
            for (_, count), batch in batches.items():
                values = [self._parts[index].of(parameter.value) for index, parameter in batch]
                grads = [self._parts[index].of(parameter.buffer()) for index, parameter in batch]
                state = [[arrays[index] for index, _ in batch] for arrays in self._state.values()]
                copies = [None if self._shards is not None else parameter.copy for _, parameter in batch]
                self._update(
                    values,
                    grads,
                    state,
                    lr=lr * group.lr_factor,
                    weight_decay=group.weight_decay,
                    step=count,
                    grad_scale=scale,
                    copies=None if all(copy is None for copy in copies) else copies,
                )
                if self._shards is None:
                    for _, parameter in batch:
                        parameter.stored()
        if self._shards is not None:
            self._shards.spread()
        return Launched(self, norm, grad_scale, loss, updated)

    def _clipped(self, grad_scale: float, loss: Any, check: bool) -> tuple[Any, Any]:
        """Return the norm of the gradients, where it is asked for, and what they are multiplied by.

        Of parameters on a GPU both are there: the kernels that update read the norm, and change nothing where it is not
        finite.
        """
        backend = None if self._shards is not None else dispatch.backend_of(self.parameters[0].value)
        most = math.inf if self.clip_norm is None else self.clip_norm
        grads = [p.buffer() for p in self.parameters if not p.fresh]
        if backend is not None and grads and (loss is not None or check or self.clip_norm is not None):
            known = check or self.clip_norm is not None
            norm = backend.global_norm(grads) if known else namespace(grads[0]).zeros((), np.float64)
            seen = norm if loss is None else norm + 0.0 * loss  # 0 times what is not finite is NaN
            return norm if known else None, backend.Clip(grad_scale, seen, most)
        if not check and self.clip_norm is None:
            return None, grad_scale
        norm = self.gradient_norm()
        self._require_finite(grad_scale * norm)
        # torch's rule, so that runs can be compared step by step
        return norm, grad_scale * min(1.0, most / (grad_scale * norm + 1e-6))

    def _require_finite(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise FloatingPointError(f"{type(self).__name__}: the norm of the gradients is {norm}")

    def _undo(self, updated: list[int]) -> None:
        """Count as not made a step that has changed nothing."""
        self.steps -= 1
        self._counts[updated] -= 1
        for index in updated:
            self.parameters[index].fresh = False

    def _update(
        self,
        values: list[Array],
        grads: list[Array],
        state: list[list[Array]],
        *,
        lr: float,
        weight_decay: float,
        step: int,
        grad_scale: float,
        copies: list[Array | None] | None,
    ) -> None:
        """Change `values` by `grads`; `state` has a list for each of `slots`, `step` counts from 1.

        `copies` are where new values go in 16 bits as well, None where nowhere.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Return what a checkpoint needs, by name. They are the arrays that are updated, not copies.

        Of a state that is divided it is the whole one where a checkpoint is written, elsewhere only what is not.
        """
        state = self._kept()
        if self._shards is None:
            return state
        for name, (_, shape) in self._divided().items():
            whole = self._shards.whole(state.pop(name), shape)
            if whole is not None:
                state[name] = whole
        return state

    def _kept(self) -> dict[str, Array]:
        """Return the arrays that are here, by name."""
        state = {"steps": np.array([self.steps], np.int64), "updates": self._counts}
        for slot, arrays in self._state.items():
            for index, (parameter, array) in enumerate(zip(self.parameters, arrays, strict=True)):
                state[f"{slot}.{parameter.name or index}"] = array
        return state

    def _divided(self) -> dict[str, tuple[Part, tuple[int, ...]]]:
        """Return part and whole shape of the arrays of which only a part is here, by name."""
        return {
            f"{slot}.{parameter.name or index}": (part, shapes[index])
            for slot, shapes in self._shapes.items()
            for index, (parameter, part) in enumerate(zip(self.parameters, self._parts, strict=True))
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy a state; ValueError names the entries that do not fit, and then nothing was changed."""
        own, owner = self._kept(), type(self).__name__
        copy_state(owner, own, state if self._shards is None else cut(owner, state, self._divided()))
        self.steps = int(own["steps"][0])


profiling.trace(Optimizer, ("launch",), lambda optimizer, method: f"{type(optimizer).__name__}.step")
