"""Optimizers: their rules written out in NumPy, clipping, groups, state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numformer import optim
from numformer.nn import Parameter


def _parameters(seed: int = 0) -> list[Parameter]:
    rng = np.random.default_rng(seed)
    return [Parameter(rng.standard_normal((3, 4)), "w"), Parameter(rng.standard_normal(5), "b")]


def _give(parameters: list[Parameter], step: int, scale: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(100 + step)
    gradients = [scale * rng.standard_normal(p.value.shape) for p in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.add(gradient)
    return gradients


def test_gradient_descent() -> None:
    parameters = _parameters()
    before = [p.value.copy() for p in parameters]
    optimizer = optim.GradientDescent(parameters, lr=0.1)
    gradients = _give(parameters, 0)
    assert optimizer.step() is None
    for parameter, old, gradient in zip(parameters, before, gradients, strict=True):
        np.testing.assert_allclose(parameter.value, old - 0.1 * gradient, rtol=1e-14)
        assert parameter.fresh


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov: bool) -> None:
    parameters = _parameters()
    values = [p.value.copy() for p in parameters]
    momenta = [np.zeros_like(v) for v in values]
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.01)
    for step in range(4):
        gradients = _give(parameters, step)
        optimizer.step()
        for value, momentum, gradient in zip(values, momenta, gradients, strict=True):
            g = gradient + 0.01 * value
            momentum[...] = 0.8 * momentum + g
            value -= 0.1 * (g + 0.8 * momentum if nesterov else momentum)
    for parameter, value in zip(parameters, values, strict=True):
        np.testing.assert_allclose(parameter.value, value, rtol=1e-12)


def test_adamw_with_groups_and_schedule() -> None:
    parameters = _parameters()
    values = [p.value.copy() for p in parameters]
    m, v = [np.zeros_like(x) for x in values], [np.zeros_like(x) for x in values]
    optimizer = optim.AdamW(optim.decay_groups(parameters, 0.1), betas=(0.8, 0.9), eps=1e-6)
    for step in range(5):
        lr = 0.01 * (step + 1)
        gradients = _give(parameters, step)
        optimizer.step(lr)
        for i, gradient in enumerate(gradients):
            m[i] = 0.8 * m[i] + 0.2 * gradient
            v[i] = 0.9 * v[i] + 0.1 * gradient**2
            values[i] *= 1 - lr * (0.1 if i == 0 else 0.0)
            values[i] -= lr * (m[i] / (1 - 0.8 ** (step + 1))) / (np.sqrt(v[i] / (1 - 0.9 ** (step + 1))) + 1e-6)
    for parameter, value in zip(parameters, values, strict=True):
        np.testing.assert_allclose(parameter.value, value, rtol=1e-10)


@pytest.mark.parametrize("piece", [2, 1000])
def test_lion(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Algorithm 2 of the paper, with clipping and two groups, in one piece and in many."""
    monkeypatch.setattr("numformer.optim.lion.PIECE", piece)
    parameters = _parameters()
    values = [p.value.copy() for p in parameters]
    m = [np.zeros_like(x) for x in values]
    optimizer = optim.Lion(optim.decay_groups(parameters, 0.1), lr=0.01, betas=(0.8, 0.95), clip_norm=2.0)
    for step in range(20):
        gradients = _give(parameters, step)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        optimizer.step()
        for i, gradient in enumerate(gradients):
            g = gradient * min(1.0, 2.0 / (norm + 1e-6))
            update = np.sign(0.8 * m[i] + 0.2 * g)
            values[i] -= 0.01 * (update + (0.1 if i == 0 else 0.0) * values[i])
            m[i] = 0.95 * m[i] + 0.05 * g
    for parameter, value in zip(parameters, values, strict=True):
        np.testing.assert_allclose(parameter.value, value, rtol=1e-10)


@pytest.mark.parametrize("scale", [0.001, 50.0])
def test_clipping(scale: float) -> None:
    parameters = _parameters()
    before = [p.value.copy() for p in parameters]
    optimizer = optim.GradientDescent(parameters, lr=1.0, clip_norm=0.5)
    gradients = _give(parameters, 0, scale)
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    returned = optimizer.step()
    np.testing.assert_allclose(returned, norm, rtol=1e-12)
    moved = [old - p.value for p, old in zip(parameters, before, strict=True)]
    length = np.sqrt(sum((x**2).sum() for x in moved))
    np.testing.assert_allclose(length, norm * min(1, 0.5 / (norm + 1e-6)), rtol=1e-9)
    assert length <= 0.5


def test_broken_gradients_change_nothing() -> None:
    parameters = _parameters()
    before = [p.value.copy() for p in parameters]
    optimizer = optim.AdamW(parameters, clip_norm=1.0)
    _give(parameters, 0)
    parameters[0].grad[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="nan"):
        optimizer.step()
    for parameter, old in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(parameter.value, old)


def test_parameters_without_a_gradient_stay() -> None:
    parameters = _parameters()
    optimizer = optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    before = parameters[1].value.copy()
    parameters[0].add(np.ones((3, 4)))
    optimizer.step()
    np.testing.assert_array_equal(parameters[1].value, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p),
        lambda p: optim.Adam(p),
        lambda p: optim.AdamW(p),
        lambda p: optim.Adagrad(p),
        lambda p: optim.Lion(p),
        lambda p: optim.Adafactor(p),
        lambda p: optim.RMSprop(p, momentum=0.5, centered=True),
        lambda p: optim.GradientDescent(p),
    ],
)
def test_state_goes_on_where_it_stopped(make: Any) -> None:
    one, two = _parameters(), _parameters()
    a, b = make(one), make(two)
    for step in range(3):
        _give(one, step)
        a.step()
    for p, q in zip(one, two, strict=True):
        q.value[...] = p.value
    b.load_state_dict({name: value.copy() for name, value in a.state_dict().items()})
    for step in range(3, 6):
        for parameters, optimizer in ((one, a), (two, b)):
            _give(parameters, step)
            optimizer.step()
    for p, q in zip(one, two, strict=True):
        np.testing.assert_array_equal(p.value, q.value)


def test_state_of_another() -> None:
    a = optim.AdamW(_parameters())
    with pytest.raises(ValueError, match=r"missing m\.w.*unexpected momentum\.w"):
        a.load_state_dict(optim.SGD(_parameters()).state_dict())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: optim.AdamW([]), TypeError, "not empty"),
        (lambda: optim.AdamW([np.zeros(3)]), TypeError, "list of Parameter"),
        (lambda: optim.AdamW(_parameters(), lr=-1), ValueError, "lr"),
        (lambda: optim.AdamW(_parameters(), lr=float("nan")), ValueError, "lr"),
        (lambda: optim.AdamW(_parameters(), betas=(0.9, 1.0)), ValueError, "beta2"),
        (lambda: optim.AdamW(_parameters(), clip_norm=0.0), ValueError, "clip_norm"),
        (lambda: optim.SGD(_parameters(), momentum=1.0), ValueError, "momentum"),
        (lambda: optim.Adam(_parameters(), betas=(1.0, 0.9)), ValueError, "Adam: beta1"),
        (lambda: optim.Lion(_parameters(), betas=(0.9, 1.0)), ValueError, "Lion: beta2"),
        (lambda: optim.Adafactor(_parameters(), beta2_decay=0.5), ValueError, "Adafactor: beta2_decay"),
        (lambda: optim.Adafactor(_parameters(), d=0.0), ValueError, "Adafactor: d must"),
        (lambda: optim.Adafactor(_parameters(), eps=(None, -1.0)), ValueError, "Adafactor: eps"),
        (lambda: optim.Average(_parameters(), decay=1.0), ValueError, "decay"),
        (lambda: optim.Average([]), ValueError, "not be empty"),
        (lambda: optim.Adagrad(_parameters(), initial=-1.0), ValueError, "initial"),
        (lambda: optim.Adagrad(_parameters(), eps=-1.0), ValueError, "eps"),
        (lambda: optim.RMSprop(_parameters(), alpha=1.0), ValueError, "alpha"),
        (lambda: optim.RMSprop(_parameters(), momentum=-0.1), ValueError, "momentum"),
        (lambda: optim.SGD([optim.Group(_parameters(), lr_factor=-1.0)]), ValueError, "lr_factor"),
        (lambda: optim.SGD([optim.Group(_parameters(), float("nan"))]), ValueError, "weight_decay of a group"),
        (lambda: optim.inverse_sqrt(), ValueError, "lr or width"),
        (lambda: optim.inverse_sqrt(0.1, width=3), ValueError, "not both"),
        (lambda: optim.inverse_sqrt(0.1, warmup=0), ValueError, "warmup"),
        (lambda: optim.cosine_restarts(0.1, period=0), ValueError, "period"),
        (lambda: optim.warm(lambda step: 0.1, -1), ValueError, "warmup"),
        (lambda: optim.SGD(_parameters(), momentum=0.0, nesterov=True), ValueError, "nesterov"),
        (lambda: optim.SGD(_parameters()[:1] * 2), ValueError, "twice"),
    ],
)
def test_bad_options(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_schedules() -> None:
    cosine = optim.cosine(1.0, steps=11, warmup=0, final=0.2)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10), cosine(99)], [1.0, 0.6, 0.2, 0.2])
    linear = optim.linear(1.0, steps=13, warmup=2)
    np.testing.assert_allclose([linear(0), linear(1), linear(2), linear(7), linear(12)], [1 / 3, 2 / 3, 1, 0.5, 0])
    assert optim.constant(0.5, warmup=1)(0) == 0.25
    assert optim.constant(0.5, warmup=1)(1) == 0.5


def test_the_rate_of_the_paper() -> None:
    rate = optim.inverse_sqrt(width=512, warmup=4000)
    for s in (1, 17, 3999, 4000, 4001, 100_000):
        np.testing.assert_allclose(rate(s - 1), 512**-0.5 * min(s**-0.5, s * 4000**-1.5), rtol=1e-12)


def test_restarts() -> None:
    rate = optim.cosine_restarts(1.0, period=4, factor=2, final=0.5)
    assert [i for i in range(30) if rate(i) == 1.0] == [0, 4, 12, 28]
    np.testing.assert_allclose([rate(2), rate(8)], 0.75)


def test_learning_rates_of_groups() -> None:
    parameters = _parameters()
    before = [p.value.copy() for p in parameters]
    optimizer = optim.SGD(
        [optim.Group(parameters[:1], lr_factor=0.1), optim.Group(parameters[1:])], lr=1.0, momentum=0.0
    )
    gradients = _give(parameters, 0)
    optimizer.step(0.5)
    for p, old, gradient, lr in zip(parameters, before, gradients, (0.05, 0.5), strict=True):
        np.testing.assert_allclose(p.value, old - lr * gradient, rtol=1e-12)


def test_adam_counts_the_updates_of_each_parameter() -> None:
    """A parameter whose first gradient comes late takes a first step as long as any other's."""
    parameters = _parameters()
    optimizer = optim.Adam(parameters, lr=0.1)
    for _ in range(5):
        parameters[0].add(np.ones((3, 4)))
        optimizer.step()
    before = parameters[1].value.copy()
    parameters[1].add(np.full(5, 7.0))
    optimizer.step()
    np.testing.assert_allclose(before - parameters[1].value, 0.1, rtol=1e-6)
