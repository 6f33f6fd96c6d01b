"""Cross-entropy and embedding for a GPU, run on the host, beside their twins."""

import numpy as np
import pytest
import tolerance
from arrays import DTYPES, bits, heavy, name, normal
from numformer import reference
from tolerance import check, rounded, working


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy(gpu, rng, dtype, reduction, label_smoothing):
    for shape in ((1, 1), (7, 33), (2, 3, 2100), (0, 5)):
        x = rng.choice([normal, heavy])(rng, *shape, dtype=dtype)
        targets = rng.integers(0, shape[-1], shape[:-1]).astype(rng.choice([np.int32, np.int64]))
        targets[rng.random(targets.shape) < 0.3] = -100
        losses, lse = np.full((2, *shape[:-1]), np.nan, working(dtype))
        loss = None if reduction == "none" else np.full((), np.nan, working(dtype))
        gpu.cross_entropy(loss, losses, lse, x, targets, -100, label_smoothing, reduction)
        options = {"label_smoothing": label_smoothing, "reduction": reduction}
        want, want_lse = reference.cross_entropy(x, targets, return_lse=True, **options)
        rows = reference.cross_entropy(x, targets, label_smoothing=label_smoothing, reduction="none")
        e_loss, e_lse = tolerance.cross_entropy(x, targets, label_smoothing, dtype)
        check(lse, want_lse, rounded(e_lse, want_lse, lse.dtype), f"lse {shape}")
        check(losses, rows, rounded(e_loss, rows, lse.dtype), f"losses {shape}")
        if loss is not None:
            share = 1 / max((targets != -100).sum(), 1) if reduction == "mean" else 1.0
            bound = share * np.sum(e_loss + 2 * tolerance.u(lse.dtype) * np.abs(rows))
            check(loss, want, rounded(bound, want, lse.dtype), f"loss {shape}")
        dloss = np.asarray(normal(rng, *(targets.shape if loss is None else ()), dtype=working(dtype)))
        dx = x.copy()  # in place
        gpu.cross_entropy_backward(dx, dloss, dx, targets, lse, -100, label_smoothing, reduction, scratch=True)
        want = reference.cross_entropy_backward(dloss, x, targets, lse, **options)
        bound = tolerance.cross_entropy_backward(dloss, x, targets, lse, dtype, **options)
        check(dx, want, rounded(bound, want, dtype), f"dlogits {shape}")


@pytest.mark.parametrize("columns", [40, 2100])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_cross_entropy_of_what_rises_and_is_masked(gpu, rng, dtype, columns):
    """The greatest value yet changes all the time, or is below all numbers for long."""
    x = np.stack([np.linspace(-50, 50, columns), np.linspace(50, -50, columns), np.full(columns, -np.inf)]).astype(
        dtype
    )
    x[2, columns // 2] = 3
    x = np.concatenate([x, normal(rng, 3, columns, dtype=dtype)])
    x[3, : columns // 2] = -np.inf
    x[4, columns - 3], x[5, 1] = np.nan, np.inf
    targets = np.full(6, columns // 2)
    losses, lse = np.zeros((2, 6), working(dtype))
    gpu.cross_entropy(None, losses, lse, x, targets, -100, 0.0, "none")
    want, want_lse = reference.cross_entropy(x[:4], targets[:4], reduction="none", return_lse=True)
    e_loss, e_lse = tolerance.cross_entropy(x[:4], targets[:4], 0.0, dtype)
    check(lse[:4], want_lse, rounded(e_lse, want_lse, lse.dtype), "lse")
    check(losses[:4], want, rounded(e_loss, want, lse.dtype), "losses")
    assert np.isnan(losses[4:]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_loss_and_gradient_at_once(gpu, rng, dtype):
    wide = working(dtype)
    x, targets = normal(rng, 9, 40, dtype=wide), rng.integers(0, 40, 9)
    targets[4] = -1
    count, losses = np.zeros(1), np.full(9, np.nan, wide)
    gpu.count_targets(count, targets, -1, True)
    assert count[0] == 8
    dx = x.copy() if wide == dtype else np.empty(x.shape, dtype)
    gpu.cross_entropy_gradient(losses, dx, x if wide != dtype else dx, targets, count, -1, 0.1, 0.5)
    options = {"ignore_index": -1, "label_smoothing": 0.1}
    want, lse = reference.cross_entropy(x, targets, reduction="none", return_lse=True, **options)
    bound, e_lse = tolerance.cross_entropy(x, targets, 0.1, wide)
    check(losses, want, rounded(bound, want, wide), "losses")
    apart, there = np.full((9, 64), np.nan, wide), np.full((9, 48), np.nan, dtype)
    apart[:, :40] = x
    again = np.full(9, np.nan, wide)
    gpu.cross_entropy_gradient(again, there[:, :40], apart[:, :40], targets, count, -1, 0.1, 0.5)
    assert bits(again) == bits(losses) and bits(np.ascontiguousarray(there[:, :40])) == bits(dx)
    assert np.isnan(there[:, 40:].astype(float)).all()
    want = reference.cross_entropy_backward(0.5, x, targets, lse, **options)
    bound = tolerance.cross_entropy_backward(0.5, x, targets, lse, wide, **options)
    check(dx, want, rounded(bound + 0.5 / 8 * e_lse[:, None], want, dtype), "dlogits")


def test_targets_that_are_no_classes_give_nan(gpu, rng):
    x, targets = normal(rng, 4, 5), np.array([0, 5, -3, 4])
    losses, lse, loss, dx = np.empty(4, np.float32), np.empty(4, np.float32), np.empty((), np.float32), np.empty_like(x)
    gpu.cross_entropy(loss, losses, lse, x, targets, -100, 0.0, "sum")
    assert np.array_equal(np.isnan(losses), [False, True, True, False]) and np.isnan(loss)
    gpu.cross_entropy_backward(dx, np.ones((), np.float32), x, targets, lse, -100, 0.0, "sum", scratch=True)
    assert np.array_equal(np.isnan(dx).all(axis=1), [False, True, True, False]) and np.isfinite(dx[[0, 3]]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("rows", "columns", "shape"), [(1, 1, (3,)), (7, 300, (4, 50)), (100, 5, (6,)), (9, 3, (0,))])
def test_embedding(gpu, rng, dtype, rows, columns, shape):
    table = normal(rng, rows, columns, dtype=dtype)
    ids = rng.integers(0, rows, shape).astype(rng.choice([np.int32, np.int64]))
    out = np.full((*shape, columns), np.nan, dtype)
    gpu.embedding(out, table, ids)
    assert bits(out) == bits(table[ids])
    dy = normal(rng, *shape, columns, dtype=dtype)
    for wide in {dtype, working(dtype)}:
        dtable = np.full((rows, columns), np.nan, wide)
        gpu.embedding_backward(dtable, dy, ids, False, scratch=True)
        want = reference.embedding_backward(dy, ids, rows)
        bound = tolerance.embedding_backward(dy, ids, rows, dtype)
        check(dtable, want, rounded(bound, want, wide), "dweight")
        start = normal(rng, rows, columns, dtype=wide)
        dtable = start.copy()
        gpu.embedding_backward(dtable, dy, ids, True, scratch=True)
        want = want + start.astype(np.float64)
        size = np.abs(start.astype(np.float64)) * tolerance.gamma(ids.size + 1, dtype)
        check(dtable, want, rounded(2 * bound + size, want, wide), "dweight, added to")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_embedding_backward_has_the_bits_of_the_cpu(gpu, rng, dtype):
    """Tokens of one id are added in order there and here."""
    import numformer as nf

    ids, dy = rng.integers(0, 5, 400), normal(rng, 400, 70, dtype=dtype)
    dtable = np.empty((5, 70), dtype)
    gpu.embedding_backward(dtable, dy, ids, False, scratch=True)
    assert bits(dtable) == bits(nf.embedding_backward(dy, ids, 5))


def test_ids_outside_the_table(gpu, rng):
    table, ids = normal(rng, 4, 3), np.array([3, 4, -1, 0])
    out, dtable = np.zeros((4, 3), np.float32), np.empty((4, 3), np.float32)
    gpu.embedding(out, table, ids)
    assert np.isnan(out[1:3]).all() and bits(out[[0, 3]]) == bits(table[[3, 0]])
    dy = normal(rng, 4, 3)
    gpu.embedding_backward(dtable, dy, ids, False, scratch=True)
    assert bits(dtable) == bits(np.stack([dy[3], np.zeros(3, np.float32), np.zeros(3, np.float32), dy[0]]))
