"""Optimisers and clipping stay beside torch.optim for 100 steps.

Both sides get the same gradients, those of a fixed quadratic bowl at *PyTorch's* point, so differences come from the
updates alone. Each step adds a few roundings of the value and of the step; momentum holds a step's error for about
1 / (1 - momentum) steps.
"""

import numformer as nf
import numpy as np
import pytest
from arrays import name, normal
from numformer import reference

torch = pytest.importorskip("torch")
FLOATS = pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=name)
MODULES = pytest.mark.parametrize("module", [nf, reference], ids=["native", "reference"])
SIZES = (3, 40, 1001)
STEPS = 100


def run(rng, dtype, optimizer, update, state_arrays, memory):
    starts = [normal(rng, n, dtype=dtype) for n in SIZES]
    ours = [x.copy() for x in starts]
    state = [[np.zeros_like(x) for x in starts] for _ in range(state_arrays)]
    theirs = [torch.tensor(x).requires_grad_() for x in starts]
    bowls = [torch.tensor(np.abs(normal(rng, n, dtype=dtype)) + 0.1) for n in SIZES]
    step_of = optimizer(theirs)
    moved = 0.0
    for step in range(1, STEPS + 1):
        for w, c in zip(theirs, bowls, strict=True):
            w.grad = (c * w).detach().clone() + torch.tensor(normal(rng, len(c), dtype=dtype, scale=0.3))
        grads = [w.grad.numpy().copy() for w in theirs]
        norm = float(torch.nn.utils.clip_grad_norm_(theirs, 1.0))
        assert abs(nf.global_norm(grads) - norm) <= 40 * np.finfo(dtype).eps * norm
        before = [w.detach().numpy().copy() for w in theirs]
        step_of.step()
        # PyTorch clips by 1 / (norm + 1e-6), at most 1.
        update(ours, grads, state, step, min(1.0, 1.0 / (nf.global_norm(grads) + 1e-6)))
        size = max(float(np.abs(w.detach().numpy()).max()) for w in theirs)
        stride = max(float(np.abs(w.detach().numpy() - b).max()) for w, b in zip(theirs, before, strict=True))
        moved += np.finfo(dtype).eps * (2 * size + memory * stride)
        for x, y in zip(ours, theirs, strict=True):
            assert np.abs(x - y.detach().numpy()).max() <= moved, f"step {step}"


@FLOATS
@MODULES
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd(rng, dtype, module, momentum, nesterov, weight_decay):
    options = {"lr": 0.05, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}

    def update(values, grads, state, step, scale):
        module.sgd_update(values, grads, state[0] if momentum else None, grad_scale=scale, **options)

    run(rng, dtype, lambda p: torch.optim.SGD(p, **options), update, 1, memory=40 / (1 - momentum))


@FLOATS
@MODULES
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw(rng, dtype, module, weight_decay):
    options = {"lr": 0.02, "eps": 1e-8, "weight_decay": weight_decay}

    def update(values, grads, state, step, scale):
        module.adamw_update(values, grads, *state, step=step, grad_scale=scale, beta1=0.9, beta2=0.99, **options)

    # sums of squares remember 1 / (1 - beta2) = 100 steps, momenta 10: a few roundings of each
    run(rng, dtype, lambda p: torch.optim.AdamW(p, betas=(0.9, 0.99), **options), update, 2, memory=400.0)
