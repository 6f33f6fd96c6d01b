"""Optimizers stay beside optax for 100 steps, in float64, on the same gradients.

Where the two projects' rules differ in how they keep a quotient finite, that is set so small on both sides that it does
not count; where optax wants a chain for what is an option here, it gets the chain.
"""

import numpy as np
import pytest
from arrays import normal
from numformer import nn, optim

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
STEPS = 100
SHAPES = [(3,), (40,), (9, 13), (50, 3)]


@pytest.fixture(autouse=True)
def _float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def decayed(decay, rule):
    return optax.chain(optax.add_decayed_weights(decay), rule)


CASES = {
    "GradientDescent": (lambda p: optim.GradientDescent(p, lr=0.1), lambda: optax.sgd(0.1)),
    "SGD": (lambda p: optim.SGD(p, lr=0.1, momentum=0.0, weight_decay=0.1), lambda: decayed(0.1, optax.sgd(0.1))),
    "momentum": (lambda p: optim.SGD(p, lr=0.05, momentum=0.9), lambda: optax.sgd(0.05, momentum=0.9)),
    "Nesterov": (
        lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
        lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    ),
    "Adagrad": (
        lambda p: optim.Adagrad(p, lr=0.1, eps=0.0, initial=0.1),
        lambda: optax.adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
    ),
    "RMSprop": (
        lambda p: optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-8),
        lambda: optax.rmsprop(0.01, decay=0.9, eps=1e-8, eps_in_sqrt=False),
    ),
    "RMSprop, momentum": (
        lambda p: optim.RMSprop(p, lr=0.01, alpha=0.95, eps=1e-8, momentum=0.5),
        lambda: optax.rmsprop(0.01, decay=0.95, eps=1e-8, eps_in_sqrt=False, momentum=0.5),
    ),
    "Adam": (lambda p: optim.Adam(p, lr=0.01), lambda: optax.adam(0.01)),
    "Adam, decay": (lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1), lambda: decayed(0.1, optax.adam(0.01))),
    "AdamW": (
        lambda p: optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
        lambda: optax.adamw(0.01, b1=0.8, b2=0.95, weight_decay=0.1),
    ),
    "Lion": (
        lambda p: optim.Lion(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1),
        lambda: optax.lion(0.01, b1=0.9, b2=0.99, weight_decay=0.1),
    ),
    "Adafactor": (
        lambda p: optim.Adafactor(p, lr=0.05, eps=(1e-30, 1e-3)),
        lambda: optax.adafactor(
            lambda step: jax.numpy.minimum(0.05, (step + 1.0) ** -0.5), min_dim_size_to_factor=1, eps=1e-60
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_100_steps(rng, name):
    make, rule = CASES[name]
    # The rate and the decay of optax's Adafactor are functions of the step in float32.
    rtol = 1e-5 if name == "Adafactor" else 1e-9
    starts = [normal(rng, *shape, dtype=np.float64) for shape in SHAPES]
    mine = [nn.Parameter(x.copy()) for x in starts]
    ours, theirs = make(mine), rule()
    values = [jax.numpy.asarray(x) for x in starts]
    state = theirs.init(values)
    update = jax.jit(theirs.update)
    for step in range(STEPS):
        # Of the value, so that it stays bounded, and by chance.
        grads = [0.3 * np.asarray(v) + normal(rng, *v.shape, dtype=np.float64) for v in values]
        for parameter, gradient in zip(mine, grads, strict=True):
            parameter.add(gradient)
        ours.step()
        changes, state = update([jax.numpy.asarray(g) for g in grads], state, values)
        values = optax.apply_updates(values, changes)
        for parameter, value in zip(mine, values, strict=True):
            np.testing.assert_allclose(
                parameter.value, np.asarray(value), rtol=rtol, atol=rtol / 100, err_msg=f"step {step}"
            )


def test_clipping(rng):
    """By the norm of all gradients together; ours adds 1e-6 to it, as PyTorch does."""
    mine = [nn.Parameter(normal(rng, *shape, dtype=np.float64)) for shape in SHAPES]
    values = [jax.numpy.asarray(p.value.copy()) for p in mine]
    ours, theirs = (
        optim.AdamW(mine, clip_norm=0.7),
        optax.chain(optax.clip_by_global_norm(0.7), optax.adamw(1e-3, weight_decay=0.01)),
    )
    state = theirs.init(values)
    for step in range(STEPS):
        grads = [normal(rng, *v.shape, dtype=np.float64) * (0.01 if step % 3 else 3.0) for v in values]
        for parameter, gradient in zip(mine, grads, strict=True):
            parameter.add(gradient)
        ours.step()
        changes, state = theirs.update([jax.numpy.asarray(g) for g in grads], state, values)
        values = optax.apply_updates(values, changes)
        for parameter, value in zip(mine, values, strict=True):
            np.testing.assert_allclose(parameter.value, np.asarray(value), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            optim.cosine(0.3, steps=STEPS, warmup=10, final=0.03),
            lambda: optax.warmup_cosine_decay_schedule(0.3 / 11, 0.3, 10, STEPS - 1, 0.03),
        ),
        (optim.linear(0.3, steps=81, final=0.03), lambda: optax.linear_schedule(0.3, 0.03, 80)),
        (optim.constant(0.3), lambda: optax.constant_schedule(0.3)),
    ],
)
def test_schedules(ours, theirs):
    schedule = theirs()
    np.testing.assert_allclose([ours(i) for i in range(STEPS)], [float(schedule(i)) for i in range(STEPS)], rtol=1e-6)


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_average_of_weights(rng, decay):
    ours = [nn.Parameter(normal(rng, *shape, dtype=np.float64)) for shape in SHAPES]
    average, theirs = optim.Average(ours, decay=decay), [jax.numpy.asarray(p.value.copy()) for p in ours]
    for step in range(STEPS):
        for parameter in ours:
            parameter.value += normal(rng, *parameter.value.shape, dtype=np.float64)
        average.update()
        new = [jax.numpy.asarray(p.value) for p in ours]
        # The first average is the first weights, on both sides.
        theirs = new if step == 0 else optax.incremental_update(new, theirs, 1 - decay)
    with average.applied():
        for parameter, value in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(parameter.value, np.asarray(value), rtol=1e-9, atol=1e-11)
