"""A classifier over a large vocabulary that looks into clusters of rare classes only where one is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.adaptive_embedding import AdaptiveEmbedding, Clusters
from numformer.nn.backward import Backward, take
from numformer.nn.context import Context
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter
from numformer.ops.memory import beside, empty, namespace, number, on_host

Array = NDArray[Any]

IGNORE = -100


class AdaptiveSoftmax(Module):
    """log p of tokens: p(token) = p(cluster) p(token | cluster); mean of -log p over the targets.

    The first softmax is over the most frequent tokens and one class for each of the other clusters, which have a
    softmax of their own that is computed where a target is in it (Grave et al., "Efficient softmax approximation for
    GPUs", ICML 2017). Logits are never held whole: see :func:`numformer.linear_cross_entropy`.

    Parameters
    ----------
    clusters : Clusters
        How the vocabulary is cut, and the channels of each part.
    width : int
        Size of x.
    embedding : AdaptiveEmbedding, optional
        Whose tables are the output layers too, with `tied`.
    tied : bool
        Whether the output layers are the tables of the embedding.
    tied_maps : sequence of bool
        For each cluster whether its map is that of the embedding; none by default.
    std, map_std : float, optional
        Of initial output layers and maps; 1/sqrt(inputs) by default.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, optional
        Draws the initial values.
    """

    def __init__(
        self,
        clusters: Clusters,
        width: int,
        *,
        embedding: AdaptiveEmbedding | None = None,
        tied: bool = False,
        tied_maps: Sequence[bool] = (),
        std: float | None = None,
        map_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        initial.size("AdaptiveSoftmax", width=width)
        tied_maps = tied_maps or (False,) * len(clusters)
        if len(tied_maps) != len(clusters):
            raise ValueError(f"AdaptiveSoftmax: tied_maps must have {len(clusters)} entries, got {len(tied_maps)}")
        if (tied or any(tied_maps)) and embedding is None:
            raise ValueError("AdaptiveSoftmax: embedding must be given, whose tables or maps are tied, got None")
        self.clusters, self.width = clusters, width
        common: dict[str, Any] = {"transposed": True, "dtype": dtype, "rng": rng}
        more = len(clusters) - 1
        of_clusters = clusters.widths[0] ** -0.5 if std is None else std
        self.cluster_weight = (
            Parameter(initial.normal(rng, (more, clusters.widths[0]), of_clusters, dtype)) if more else None
        )
        self.cluster_bias = Parameter(np.zeros(more, initial.parameter_dtype(dtype))) if more else None
        self.outputs = [
            Linear(d, n, weight=embedding.tables[i].weight if tied and embedding else None, std=std, **common)
            for i, (n, d) in enumerate(clusters.tables)
        ]
        mapped = clusters.shrink > 1 or clusters.widths[0] != width
        self.maps = []
        for i, d in enumerate(clusters.widths if mapped else ()):
            shared = embedding.maps[clusters.place(i)[0]].weight if tied_maps[i] and embedding else None
            self.maps.append(Linear(width, d, bias=False, weight=shared, std=map_std, dtype=dtype, rng=rng))

    def __call__(self, x: Array, targets: Array, *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the mean loss over the targets that are not -100, and its backward.

        ``backward(dloss=1.0)`` gives dx, (..., width). Output layers of clusters that no target is in get no gradient.

        Parameters
        ----------
        x : array
            (..., width).
        targets : array of integers
            (...).
        """
        flat, wanted = self._flat(x, targets)
        count = max(int(np.count_nonzero(wanted != IGNORE)), 1)
        # float16 has no room for the gradient of a mean over many rows before that is scaled.
        made = float(count) if x.dtype == np.float16 else 1.0
        losses, parts = [], []
        for cluster, places, classes in self._parts_of(wanted, flat):
            rows = flat if places is None else ops.embedding(flat, places)
            rows, project = self.maps[cluster](rows) if self.maps else (rows, None)
            pieces = self._pieces(cluster)
            weight = _join([one.use(x.dtype)[part] for one, _, part in pieces])
            bias = _join([one.use(x.dtype)[part] for _, one, part in pieces])
            dtype = pieces[0][0].value.dtype
            loss, dx, dweight, dbias = ops.linear_cross_entropy(
                rows,
                weight,
                classes,
                bias=bias,
                reduction="sum",
                dloss=made / count,
                dweight=empty(weight.shape, dtype, like=weight),
                dbias=empty(bias.shape, dtype, like=bias),
            )
            losses.append(loss)
            parts.append([places, project, dx, pieces, dweight, dbias])
        total = sum(map(number, losses))  # a GPU is waited for when it has got all its work
        return total / count, Backward(self._backward, [x.shape, parts, made])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> Array:
        shape, parts, made = take(saved)
        scale = float(dloss) / made
        flat: Any = None
        while parts:
            places, project, dx, pieces, dweight, dbias = parts.pop(0)  # the first one is of all rows
            first = 0
            for weight, bias, part in pieces:
                some = slice(first, first + part.stop - part.start)
                _add(weight, part, dweight[some], scale)
                _add(bias, part, dbias[some], scale)
                first = some.stop
            del dweight
            if scale != 1.0:
                dx = ops.cast(dx, dx.dtype, scale=scale, out=dx)
            if project is not None:
                dx = project(dx)
            if places is None:
                flat = dx
            else:
                ops.embedding_backward(dx, places, len(flat), out=flat, accumulate=True)
        return flat.reshape(shape)

    def infer_loss(self, x: Array, targets: Array) -> float:
        """Return the mean loss; nothing is kept."""
        wanted = np.asarray(targets)
        total = float(self.losses(x, targets).sum())
        return total / max(int(np.count_nonzero(wanted != IGNORE)), 1)

    def losses(self, x: Array, targets: Array) -> Array:
        """Return -log p of each target, (...) in float64, 0 where it is -100.

        The logits of a cluster are held for its targets alone, a thousand rows at a time.
        """
        flat, wanted = self._flat(x, targets)
        result = np.zeros(len(flat))
        for cluster, places, classes in self._parts_of(wanted, flat):
            pieces = self._pieces(cluster)
            weight = _join([one.read(x.dtype)[part] for one, _, part in pieces])
            bias = _join([one.read(x.dtype)[part] for _, one, part in pieces])
            asked = flat if places is None else ops.embedding(flat, places)
            found = []
            for first in range(0, len(asked), 1024):
                some = slice(first, first + 1024)
                rows = self.maps[cluster].infer(asked[some]) if self.maps else asked[some]
                logits = ops.matmul(rows, weight.T, bias=bias)
                found.append(ops.cross_entropy(logits, classes[some], reduction="none"))
            every = slice(None) if places is None else on_host(places)
            result[every] += np.concatenate([on_host(one) for one in found])
        return result.reshape(np.shape(targets))

    def infer(self, x: Array) -> Array:
        """Return log p of every token, (..., vocab_size)."""
        xp = namespace(x)
        flat = xp.ascontiguousarray(x.reshape(-1, self.width))
        first = self.clusters.edges[1]
        y = empty((len(flat), self.clusters.edges[-1]), x.dtype, like=x)
        inner: Array | None = None
        for cluster in range(len(self.clusters)):
            rows = self.maps[cluster].infer(flat) if self.maps else flat
            logits = [
                ops.matmul(rows, weight.read(x.dtype)[part].T, bias=bias.read(x.dtype)[part])
                for weight, bias, part in self._pieces(cluster)
            ]
            whole = xp.concatenate(logits, axis=1) if len(logits) > 1 else logits[0]
            _, lse = ops.cross_entropy(whole, xp.zeros(len(whole), np.int64), reduction="none", return_lse=True)
            whole -= lse[:, None].astype(whole.dtype)
            if inner is None:
                y[:, :first], inner = whole[:, :first], whole[:, first:]
            else:
                part = slice(self.clusters.edges[cluster], self.clusters.edges[cluster + 1])
                y[:, part] = whole + inner[:, cluster - 1 : cluster]
        return y.reshape(*x.shape[:-1], -1)

    def _flat(self, x: Array, targets: Array) -> tuple[Array, Array]:
        wanted = np.asarray(targets)
        if x.ndim < 1 or x.shape[-1] != self.width:
            raise ValueError(f"AdaptiveSoftmax: x must have shape (..., {self.width}), got {x.shape}")
        if wanted.dtype.kind not in "iu":
            raise TypeError(f"AdaptiveSoftmax: targets must be integers, got {wanted.dtype}")
        if wanted.shape != x.shape[:-1]:
            raise ValueError(f"AdaptiveSoftmax: targets must have shape {x.shape[:-1]}, got {wanted.shape}")
        wrong = (wanted != IGNORE) & ((wanted < 0) | (wanted >= self.clusters.edges[-1]))
        if wrong.any():
            raise ValueError(
                f"AdaptiveSoftmax: targets must be in [0, {self.clusters.edges[-1]}) or {IGNORE}, "
                f"got {wanted[wrong].flat[0]}"
            )
        return namespace(x).ascontiguousarray(x.reshape(-1, self.width)), wanted.reshape(-1).astype(np.int64)

    def _parts_of(self, targets: Array, x: Array) -> list[tuple[int, Array | None, Array]]:
        """Return for each softmax that is asked: its cluster, which rows ask (None: all), and their classes in it.

        Targets are those of the host; the arrays are where x is.
        """
        edges = self.clusters.edges
        of = self.clusters.of(targets)
        parts: list[tuple[int, Array | None, Array]] = [
            (0, None, beside(np.where(targets < edges[1], targets, edges[1] + of - 1), x))
        ]
        for cluster in range(1, len(self.clusters)):
            places = np.flatnonzero(of == cluster)
            if places.size:
                parts.append((cluster, beside(places, x), beside(targets[places] - edges[cluster], x)))
        return parts

    def _pieces(self, cluster: int) -> list[tuple[Parameter, Parameter, slice]]:
        """Return the weights and biases, and which rows of them, of which the softmax of a cluster is made."""
        table, part = self.clusters.place(cluster)
        output = self.outputs[table]
        assert output.bias is not None
        pieces = [(output.weight, output.bias, part)]
        if cluster == 0 and self.cluster_weight is not None and self.cluster_bias is not None:
            pieces.append((self.cluster_weight, self.cluster_bias, slice(0, len(self.clusters) - 1)))
        return pieces


def _join(arrays: list[Array]) -> Array:
    whole: Array = arrays[0] if len(arrays) == 1 else namespace(arrays[0]).concatenate(arrays)
    return whole


def _add(parameter: Parameter, rows: slice, gradient: Array, scale: float) -> None:
    """Write or add the gradient of some rows."""
    grad = parameter.buffer()
    if parameter.fresh and len(grad[rows]) < len(grad):
        grad[...] = 0
        parameter.fresh = False
    if parameter.fresh:
        ops.cast(gradient, gradient.dtype, scale=scale, out=grad[rows])
    else:  # grad += scale * gradient is a step of gradient descent
        ops.sgd_update([grad[rows]], [gradient], None, lr=-scale)
    parameter.done()
