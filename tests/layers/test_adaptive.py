"""Adaptive embedding and softmax against the plain formulas and central differences."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gradient import along, check
from numformer import nn

F64 = np.float64
# cutoffs, channels of the first cluster, shrink; of a vocabulary of 23 and rows of 6
CUTS = {
    "one": ((), 6, 1),
    "one-projected": ((), 4, 1),
    "one-table": ((7, 15), 4, 1),
    "one-table-of-the-width": ((9,), 6, 1),
    "clusters": ((5, 9), 9, 3),
    "lone-rare-token": ((22,), 4, 4),
}


def _layers(name: str, tied: bool, dtype: Any = F64) -> tuple[nn.AdaptiveEmbedding, nn.AdaptiveSoftmax]:
    cutoffs, channels, shrink = CUTS[name]
    clusters = nn.Clusters(23, cutoffs, channels, shrink)
    rng = np.random.default_rng(0)
    embedding = nn.AdaptiveEmbedding(clusters, 6, std=0.5, map_std=0.5, dtype=dtype, rng=rng)
    softmax = nn.AdaptiveSoftmax(
        clusters,
        6,
        embedding=embedding,
        tied=tied,
        tied_maps=(False,) + (tied,) * len(cutoffs),
        std=0.5,
        map_std=0.5,
        dtype=dtype,
        rng=rng,
    )
    for parameter in softmax.parameters():
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape).astype(dtype)
    return embedding, softmax


def _dense(softmax: nn.AdaptiveSoftmax, x: Any) -> Any:
    """log p, written down plainly."""
    edges = softmax.clusters.edges
    maps = [one.weight.value for one in softmax.maps] or [np.eye(6)] * len(softmax.clusters)
    scores = []
    for i in range(len(softmax.clusters)):
        table, part = softmax.clusters.place(i)
        output = softmax.outputs[table]
        scores.append(x @ maps[i] @ output.weight.value[part].T + output.bias.value[part])
    if len(scores) > 1:
        inner = x @ maps[0] @ softmax.cluster_weight.value.T + softmax.cluster_bias.value
        scores[0] = np.concatenate([scores[0], inner], axis=-1)
    logs = [s - np.log(np.exp(s).sum(axis=-1, keepdims=True)) for s in scores]
    parts = [logs[0][..., : edges[1]]]
    parts += [logs[i] + logs[0][..., edges[1] + i - 1, None] for i in range(1, len(logs))]
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("name", list(CUTS))
def test_embedding(name: str, rng: np.random.Generator) -> None:
    embedding, _ = _layers(name, tied=False)
    ids = rng.permutation(np.r_[np.arange(23), rng.integers(0, 23, 5)]).reshape(4, 7)
    y, backward = embedding(ids)
    clusters = embedding.clusters
    for place in np.ndindex(ids.shape):
        table = clusters.of(ids[place]) if clusters.shrink > 1 else 0
        row = embedding.tables[table].weight.value[ids[place] - (clusters.edges[table] if clusters.shrink > 1 else 0)]
        want = np.sqrt(6) * (embedding.maps[table].weight.value @ row if embedding.maps else row)
        np.testing.assert_allclose(y[place], want, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(embedding.infer(ids), y)
    weights = rng.standard_normal(y.shape)
    assert backward(weights) is None
    assert all(parameter.pending == 0 for parameter in embedding.parameters())
    for parameter in embedding.parameters():
        assert parameter.grad is not None
        along(lambda: float((embedding(ids)[0] * weights).sum()), parameter.value, parameter.grad.copy(), rng)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", list(CUTS))
def test_softmax(name: str, tied: bool, rng: np.random.Generator) -> None:
    """The loss is the mean over targets; its gradients are those of central differences, scaled and added too."""
    _, softmax = _layers(name, tied)
    x = rng.standard_normal((4, 7, 6))
    targets = rng.permutation(np.r_[np.arange(23), rng.integers(0, 23, 2), [-100] * 3]).reshape(4, 7)
    dense = _dense(softmax, x)
    np.testing.assert_allclose(softmax.infer(x), dense, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(np.exp(dense).sum(axis=-1), 1.0, rtol=1e-12)
    each = -np.take_along_axis(dense, np.maximum(targets, 0)[..., None], -1)[..., 0] * (targets != -100)
    np.testing.assert_allclose(softmax.losses(x, targets), each, rtol=1e-11, atol=1e-11)
    loss, _ = softmax(x, targets)
    np.testing.assert_allclose([loss, softmax.infer_loss(x, targets)], each.sum() / 25, rtol=1e-12)
    for parameter in softmax.parameters():
        parameter.reset()

    def forward(x: Any) -> Any:
        loss, backward = softmax(x, targets)
        return np.array(loss), lambda dloss: backward(float(dloss))

    check(forward, x, softmax.parameters(), rng)


def test_clusters_without_targets_get_no_gradient(rng: np.random.Generator) -> None:
    embedding, softmax = _layers("clusters", tied=False)
    x = rng.standard_normal((3, 6))
    loss, backward = softmax(x, np.array([2, 6, -100]))
    assert np.isfinite(loss)
    dx = backward()
    np.testing.assert_array_equal(dx[2], 0.0)
    got = set(softmax.gradients())
    assert {"outputs.1.weight", "maps.1.weight"} <= got
    assert not {"outputs.2.weight", "maps.2.weight"} & got
    embedding(np.array([1, 22]))[1](np.ones((2, 6)))
    assert set(embedding.gradients()) == {"tables.0.weight", "maps.0.weight", "tables.2.weight", "maps.2.weight"}


def test_no_target_counts(rng: np.random.Generator) -> None:
    _, softmax = _layers("clusters", tied=False)
    x = rng.standard_normal((3, 6))
    loss, backward = softmax(x, np.full(3, -100))
    assert loss == 0.0
    np.testing.assert_array_equal(backward(), np.zeros((3, 6)))


def test_half_precision(rng: np.random.Generator) -> None:
    """Gradients of float32 parameters stay float32, and are near those of float32."""
    _, softmax = _layers("clusters", tied=False, dtype=np.float32)
    x, targets = rng.standard_normal((64, 6)).astype(np.float32), rng.integers(0, 23, 64)
    loss, backward = softmax(x, targets)
    dx = backward()
    want = {name: value.copy() for name, value in softmax.gradients().items()}
    for dtype in (np.float16, ml_dtypes.bfloat16):
        softmax.zero_grad()
        near, backward = softmax(x.astype(dtype), targets)
        dnear = backward()
        assert dnear.dtype == dtype
        assert abs(near - loss) < 0.03 * abs(loss)
        assert np.abs(dnear.astype(np.float32) - dx).max() < 0.05 * np.abs(dx).max()
        for name, value in softmax.gradients().items():
            assert value.dtype == np.float32
            assert np.abs(value - want[name]).max() < 0.05 * np.abs(want[name]).max() + 1e-4, name


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nn.Clusters(10, (5, 5), 4, 1), ValueError, "cutoffs"),
        (lambda: nn.Clusters(10, (0,), 4, 1), ValueError, "cutoffs"),
        (lambda: nn.Clusters(10, (10,), 4, 1), ValueError, "cutoffs"),
        (lambda: nn.Clusters(10, (2.5,), 4, 1), ValueError, "cutoffs"),
        (lambda: nn.Clusters(10, (5,), 3, 4), ValueError, "no channel"),
        (lambda: nn.Clusters(10, (), 4, 0), ValueError, "shrink"),
        (lambda: nn.AdaptiveSoftmax(nn.Clusters(9, (4,), 4, 1), 6, tied=True), ValueError, "embedding"),
        (lambda: nn.AdaptiveSoftmax(nn.Clusters(9, (4,), 4, 1), 6, tied_maps=(True,)), ValueError, "tied_maps"),
        (lambda: _layers("clusters", False)[0](np.array([23])), ValueError, "ids"),
        (lambda: _layers("clusters", False)[1](np.zeros((1, 6)), np.array([23])), ValueError, "targets"),
        (lambda: _layers("clusters", False)[1](np.zeros((1, 6)), np.array([-1])), ValueError, "targets"),
        (lambda: _layers("clusters", False)[1](np.zeros((1, 6)), np.array([1.0])), TypeError, "targets"),
        (lambda: _layers("clusters", False)[1](np.zeros((1, 6)), np.array([1, 2])), ValueError, "targets"),
        (lambda: _layers("clusters", False)[1](np.zeros((1, 5)), np.array([1])), ValueError, "x must"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
