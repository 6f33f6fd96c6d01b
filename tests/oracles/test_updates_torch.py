"""Optimisers and clipping stay beside torch.optim for 100 steps.

Both sides get the same gradients, those of a fixed quadratic bowl at *PyTorch's* point, so differences come from the
updates alone. Each step adds a few roundings of the value and of the step; momentum holds a step's error for about
1 / (1 - momentum) steps.
"""

import numformer as nf
import numpy as np
import pytest
from arrays import name, normal
from numformer import nn, optim, reference

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


@FLOATS
@MODULES
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam(rng, dtype, module, weight_decay):
    options = {"lr": 0.02, "eps": 1e-8, "weight_decay": weight_decay}

    def update(values, grads, state, step, scale):
        module.adam_update(values, grads, *state, step=step, grad_scale=scale, beta1=0.9, beta2=0.99, **options)

    run(rng, dtype, lambda p: torch.optim.Adam(p, betas=(0.9, 0.99), **options), update, 2, memory=400.0)


@FLOATS
@MODULES
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adagrad(rng, dtype, module, weight_decay):
    options = {"lr": 0.1, "eps": 1e-10, "weight_decay": weight_decay}

    def update(values, grads, state, step, scale):
        module.adagrad_update(values, grads, *state, grad_scale=scale, **options)

    # all steps are remembered
    run(rng, dtype, lambda p: torch.optim.Adagrad(p, **options), update, 1, memory=400.0)


@FLOATS
@MODULES
@pytest.mark.parametrize(("momentum", "centered"), [(0.0, False), (0.0, True), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rmsprop(rng, dtype, module, momentum, centered, weight_decay):
    options = {"lr": 0.01, "alpha": 0.95, "eps": 1e-2, "momentum": momentum, "weight_decay": weight_decay}

    def update(values, grads, state, step, scale):
        means, momenta = state[1] if centered else None, state[2] if momentum else None
        module.rmsprop_update(values, grads, state[0], means, momenta, grad_scale=scale, **options)

    # the variance is a difference: its roundings are those of the squares, divided by less
    memory = 400.0 / (1 - momentum) * (4 if centered else 1)
    run(rng, dtype, lambda p: torch.optim.RMSprop(p, centered=centered, **options), update, 3, memory=memory)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (optim.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (optim.Adam, torch.optim.Adam, {"weight_decay": 0.01}),
        (optim.AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
        (optim.Adagrad, torch.optim.Adagrad, {"weight_decay": 0.01}),
        (optim.RMSprop, torch.optim.RMSprop, {"momentum": 0.5, "centered": True, "weight_decay": 0.01}),
    ],
)
def test_optimizers_with_groups_and_rests(rng, ours, theirs, options):
    """Two groups with learning rates of their own, and a parameter that has a gradient only now and then."""
    starts = [normal(rng, n, dtype=np.float64) for n in SIZES]
    mine = [nn.Parameter(x.copy()) for x in starts]
    other = [torch.tensor(x).requires_grad_() for x in starts]
    a = ours([optim.Group(mine[:2], options["weight_decay"]), optim.Group(mine[2:], 0.0, 0.5)], lr=0.01, **options)
    groups = [{"params": other[:2]}, {"params": other[2:], "weight_decay": 0.0, "lr": 0.005}]
    b = theirs(groups, lr=0.01, **options)
    for step in range(STEPS):
        b.zero_grad(set_to_none=True)
        for i, (p, q) in enumerate(zip(mine, other, strict=True)):
            if i != 1 or step % 3 == 2:
                gradient = normal(rng, len(p.value), dtype=np.float64)
                p.add(gradient)
                q.grad = torch.tensor(gradient)
        a.step()
        b.step()
        for p, q in zip(mine, other, strict=True):
            np.testing.assert_allclose(p.value, q.detach().numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("piece", [40, 1 << 17])
@pytest.mark.parametrize(
    "options",
    [{}, {"lr": 0.3, "beta2_decay": -0.5, "d": 1.1, "weight_decay": 0.1}, {"eps": (1e-3, 0.5), "lr": 0.05}],
)
def test_adafactor(rng, monkeypatch, options, piece, dtype):
    """Vectors, matrices and stacks of them, in pieces or whole; a gradient of zeros; rests; a group of its own."""
    monkeypatch.setattr("numformer.optim.adafactor.PIECE", piece)
    shapes = [(7,), (1,), (9, 13), (50, 3), (1, 6), (2, 3, 5), (4, 4)]
    starts = [normal(rng, *shape, dtype=dtype) for shape in shapes]
    mine, other = [nn.Parameter(x.copy()) for x in starts], [torch.tensor(x).requires_grad_() for x in starts]
    decay, lr = options.get("weight_decay", 0.0), options.get("lr", 1e-2)
    a = optim.Adafactor([optim.Group(mine[:3], decay), optim.Group(mine[3:], 0.0, 0.5)], **options)
    groups = [{"params": other[:3]}, {"params": other[3:], "weight_decay": 0.0, "lr": 0.5 * lr}]
    b = torch.optim.Adafactor(groups, **options)
    for step in range(STEPS):
        b.zero_grad(set_to_none=True)
        for i, (p, q) in enumerate(zip(mine, other, strict=True)):
            if i != 1 or step % 3 == 2:
                gradient = normal(rng, *p.value.shape, dtype=dtype) * (0.0 if i == 6 else 10.0 ** rng.integers(-4, 2))
                p.add(gradient.astype(dtype))
                q.grad = torch.tensor(gradient.astype(dtype))
        a.step()
        b.step()
        for p, q in zip(mine, other, strict=True):
            want = q.detach().numpy()
            bound = (1e-9 if dtype == np.float64 else 1e-4) * np.abs(want).max()
            np.testing.assert_allclose(p.value, want, rtol=0, atol=bound)


def rates(make, lr, steps=STEPS):
    """The rates of a scheduler of PyTorch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules():
    s = torch.optim.lr_scheduler
    warm = lambda o: s.LinearLR(o, start_factor=1 / 8, total_iters=7)
    pairs = [
        (optim.constant(0.3, warmup=7), warm),
        (optim.linear(0.3, steps=81, final=0.03), lambda o: s.LinearLR(o, 1.0, 0.1, total_iters=80)),
        (optim.cosine(0.3, steps=STEPS, final=0.01), lambda o: s.CosineAnnealingLR(o, STEPS - 1, eta_min=0.01)),
        (
            optim.cosine_restarts(0.3, period=9, factor=2, final=0.02),
            lambda o: s.CosineAnnealingWarmRestarts(o, 9, 2, eta_min=0.02),
        ),
        (
            optim.cosine_restarts(0.3, period=13, warmup=7),
            lambda o: s.SequentialLR(o, [warm(o), s.CosineAnnealingWarmRestarts(o, 13)], [7]),
        ),
        (
            optim.warm(lambda step: 0.3 * 0.9**step, 7),
            lambda o: s.SequentialLR(o, [warm(o), s.ExponentialLR(o, 0.9)], [7]),
        ),
        (
            optim.inverse_sqrt(0.3, warmup=20),
            lambda o: s.LambdaLR(o, lambda i: min((i + 1) / 20, (20 / (i + 1)) ** 0.5)),
        ),
    ]
    for schedule, theirs in pairs:
        np.testing.assert_allclose([schedule(i) for i in range(STEPS)], rates(theirs, 0.3), rtol=1e-9)


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_average_of_weights(rng, decay):
    """As torch.optim.swa_utils has it, over 100 steps."""
    swa = torch.optim.swa_utils
    ours = [nn.Parameter(normal(rng, n, dtype=np.float64)) for n in SIZES]
    theirs = torch.nn.ParameterList([torch.tensor(p.value) for p in ours])
    average = optim.Average(ours, decay=decay)
    model = swa.AveragedModel(theirs, multi_avg_fn=swa.get_ema_multi_avg_fn(decay))
    for _ in range(STEPS):
        for p, q in zip(ours, theirs, strict=True):
            p.value += normal(rng, len(p.value), dtype=np.float64)
            q.data = torch.tensor(p.value)
        average.update()
        model.update_parameters(theirs)
    with average.applied():
        for p, q in zip(ours, model.module, strict=True):
            np.testing.assert_allclose(p.value, q.detach().numpy(), rtol=1e-12, atol=1e-13)
