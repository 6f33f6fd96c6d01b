"""Updates of optimisers for a GPU, run on the host, beside their twins."""

import numpy as np
import pytest
from arrays import DTYPES, bits, heavy, name, normal
from numformer import reference
from numformer.nn import Parameter
from numformer.optim import Adafactor, Lion
from tolerance import check, u

FLOATS = DTYPES[:2]
SIZES = [*range(61), 1000, 0, 40_001]  # more arrays than one launch takes, more elements than one chunk


def start(rng, dtype, count):
    """`count` lists of arrays, and the same in float64."""
    lists = [[np.abs(heavy(rng, n, dtype=dtype, limit=5.0)) + 1 for n in SIZES] for _ in range(count)]
    return lists, [[x.astype(np.float64) for x in xs] for xs in lists]


def compare(got, want, dtype, units):
    """All numbers are positive and of like size, so that nothing cancels: `units` roundings."""
    for xs, ys in zip(got, want, strict=True):
        for x, y in zip(xs, ys, strict=True):
            check(x, y, units * u(dtype) * (np.abs(y) + 1), "update")


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_adam(gpu, rng, dtype, decoupled, clip):
    (w, g, m, v), (w64, g64, m64, v64) = start(rng, dtype, 4)
    kind = DTYPES[2 + rng.integers(2)]
    copies = [np.empty(x.shape, kind) if i % 3 else None for i, x in enumerate(w)] if dtype == np.float32 else None
    norm = None if clip is None else np.zeros(())
    scale = 0.7
    if norm is not None:
        gpu.global_norm(norm, g, scratch=True)
        want = reference.global_norm(g64)
        check(norm, want, 1e-6 * want, "norm")
        scale *= min(1.0, clip / (0.7 * want + 1e-6))
    gpu.adam_update(w, g, m, v, copies, 0.01, 0.9, 0.95, 1e-8, 0.1, 3, 0.7, decoupled, norm, clip or 0.0)
    rule = reference.adamw_update if decoupled else reference.adam_update
    rule(w64, g64, m64, v64, lr=0.01, beta2=0.95, weight_decay=0.1, step=3, grad_scale=scale)
    compare((w, m, v), (w64, m64, v64), dtype, 200)
    for x, copy in zip(w, copies or [], strict=copies is not None):
        assert copy is None or bits(copy) == bits(x.astype(kind))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(gpu, rng, dtype, momentum, nesterov):
    (w, g, m), (w64, g64, m64) = start(rng, dtype, 3)
    gpu.sgd_update(w, g, m if momentum else None, None, 0.03, momentum, nesterov, 0.1, 0.7, None, 0.0)
    options = {"lr": 0.03, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.1, "grad_scale": 0.7}
    reference.sgd_update(w64, g64, m64 if momentum else None, **options)
    compare((w, m), (w64, m64), dtype, 30)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_adagrad_and_rmsprop(gpu, rng, dtype):
    (w, g, s), (w64, g64, s64) = start(rng, dtype, 3)
    gpu.adagrad_update(w, g, s, None, 0.03, 1e-10, 0.1, 0.7, None, 0.0)
    reference.adagrad_update(w64, g64, s64, lr=0.03, eps=1e-10, weight_decay=0.1, grad_scale=0.7)
    compare((w, s), (w64, s64), dtype, 100)
    for means, momenta in ((False, False), (True, True)):
        (w, g, s, a, b), (w64, g64, s64, a64, b64) = start(rng, dtype, 5)
        for x, y, x64, y64 in zip(s, a, s64, a64, strict=True):
            x += y * y  # the mean of squares is no less than the square of the mean
            x64 += y64 * y64
        gpu.rmsprop_update(
            w, g, s, a if means else None, b if momenta else None, None, 0.03, 0.9, 1e-6, 0.1, 0.8, 0.7, None, 0.0
        )
        reference.rmsprop_update(
            w64, g64, s64, a64 if means else None, b64 if momenta else None,
            lr=0.03, alpha=0.9, eps=1e-6, weight_decay=0.1, momentum=0.8 if momenta else 0.0, grad_scale=0.7,
        )  # fmt: skip
        compare((w, s), (w64, s64), dtype, 2000)


def beside_the_cpu(gpu, rng, dtype, make, shapes, clip, call):
    """Two steps of an optimizer, on the CPU and by `call(i, optimizer, values, grads, copies, norm)` on the device."""
    values = [normal(rng, *shape, dtype=dtype) for shape in shapes]
    parameters = [Parameter(x.copy()) for x in values]
    optimizer = make(parameters, clip)
    kind = DTYPES[2 + rng.integers(2)]
    copies = [np.empty(x.shape, kind) if i % 2 else None for i, x in enumerate(values)] if dtype == np.float32 else None
    for _ in range(2):
        grads = [normal(rng, *shape, dtype=dtype) for shape in shapes]
        state = [[array.copy() for array in arrays] for arrays in optimizer._state.values()]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.add(grad)
        optimizer.step(grad_scale=0.7)
        norm = None
        if clip is not None:
            norm = np.zeros(())
            gpu.global_norm(norm, grads, scratch=True)
        call(optimizer, values, grads, state, copies, norm)
        for x, parameter in zip(values, parameters, strict=True):
            check(x, parameter.value, 200 * u(dtype) * (np.abs(parameter.value) + 1), "value")
        for xs, ys in zip(state, optimizer._state.values(), strict=True):
            for x, y in zip(xs, ys, strict=True):
                check(x, y, 200 * u(dtype) * (np.abs(y) + 1), "state")
        for x, copy in zip(values, copies or [], strict=copies is not None):
            assert copy is None or bits(copy) == bits(x.astype(kind))
        for x, parameter in zip(values, parameters, strict=True):
            x[...] = parameter.value  # signs of what is near 0 may differ, and steps with them


SHAPES = [(7, 5), (300,), (1, 33), (2, 3, 40), (0, 4), (130, 300), (1,)]


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_lion(gpu, rng, dtype, clip):
    def call(optimizer, values, grads, state, copies, norm):
        gpu.lion_update(values, grads, *state, copies, 0.01, 0.8, 0.95, 0.1, 0.7, norm, clip or 0.0)

    make = lambda parameters, clip: Lion(parameters, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, clip_norm=clip)
    beside_the_cpu(gpu, rng, dtype, make, SHAPES, clip, call)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_adafactor(gpu, rng, dtype, clip):
    def call(optimizer, values, grads, state, copies, norm):
        step = optimizer.steps
        numbers = 0.1, step**-0.8, min(0.1, step**-0.5), 1e-6, 1e-3, 1.5, 0.1, 0.7
        gpu.adafactor_update(values, grads, *state, copies, *numbers, norm, clip or 0.0, scratch=True)

    make = lambda parameters, clip: Adafactor(
        parameters, lr=0.1, eps=(1e-6, 1e-3), d=1.5, weight_decay=0.1, clip_norm=clip
    )
    beside_the_cpu(gpu, rng, dtype, make, SHAPES, clip, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_global_norm(gpu, rng, dtype):
    arrays = [normal(rng, n, dtype=dtype) for n in SIZES] + [normal(rng, 50)]
    norm, again = np.zeros(()), np.zeros(())
    gpu.global_norm(norm, arrays, scratch=True)
    gpu.global_norm(again, arrays, scratch=True)
    want = reference.global_norm(arrays)
    check(norm, want, 1e-12 * want, "norm")
    assert bits(norm) == bits(again)
    gpu.global_norm(norm, [], scratch=True)
    assert norm == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_changes_nothing(gpu, rng, bad):
    (w, g, m, v), _ = start(rng, np.float32, 4)
    g[5][2] = bad
    before = [bits(x) for xs in (w, m, v) for x in xs]
    norm = np.zeros(())
    gpu.global_norm(norm, g, scratch=True)
    gpu.adam_update(w, g, m, v, None, 0.01, 0.9, 0.95, 1e-8, 0.1, 3, 1.0, True, norm, 1.0)
    gpu.lion_update(w, g, m, None, 0.01, 0.9, 0.99, 0.1, 1.0, norm, 1.0)
    nothing = [np.zeros(0, np.float32) for _ in v]
    gpu.adafactor_update(
        w, g, v, nothing, None, 0.1, 0.5, 0.1, 1e-6, 1e-3, 1.0, 0.1, 1.0, norm, 1.0, scratch=True
    )  # fmt: skip
    assert [bits(x) for xs in (w, m, v) for x in xs] == before


def test_bad_lists(gpu):
    two, copies = [np.ones(3, np.float32) for _ in range(2)], [np.ones(3, np.float16), np.ones(3, DTYPES[3])]
    with pytest.raises(TypeError, match=r"sgd_update: copies\[1\] must have dtype float16 or bfloat16, one for all"):
        gpu.sgd_update(two, two, None, copies, 1.0, 0.0, False, 0.0, 1.0, None, 0.0)
    w, half = [np.ones(3, np.float32)], [np.ones(3, np.float16)]
    with pytest.raises(ValueError, match=r"sgd_update: grads\[0\] must have shape \(3,\), got \(2,\)"):
        gpu.sgd_update(w, [np.ones(2, np.float32)], None, None, 1.0, 0.0, False, 0.0, 1.0, None, 0.0)
    with pytest.raises(TypeError, match=r"sgd_update: values\[0\] must have dtype float32 or float64, got float16"):
        gpu.sgd_update(half, half, None, None, 1.0, 0.0, False, 0.0, 1.0, None, 0.0)
    with pytest.raises(ValueError, match="sgd_update: grads must have 1 arrays, as values, got 0"):
        gpu.sgd_update(w, [], None, None, 1.0, 0.0, False, 0.0, 1.0, None, 0.0)
