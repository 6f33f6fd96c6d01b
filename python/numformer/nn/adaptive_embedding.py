"""Embedding with fewer channels for rare tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.backward import Backward, chain, take
from numformer.nn.context import Context
from numformer.nn.embedding import Embedding
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.ops.memory import beside, empty

Array = NDArray[Any]


class Clusters:
    """How a vocabulary is cut: tokens in the order of their frequency, the most frequent ones first.

    Parameters
    ----------
    vocab_size : int
        Number of tokens.
    cutoffs : sequence of int
        The first token of each cluster but the first; they rise and lie inside the vocabulary.
    width : int
        Channels of the first cluster; cluster i has ``width // shrink**i``.
    shrink : int
        With 1, all tokens are in one table.
    """

    def __init__(self, vocab_size: int, cutoffs: Sequence[int], width: int, shrink: int) -> None:
        initial.size("Clusters", vocab_size=vocab_size, width=width, shrink=shrink)
        edges = [0, *cutoffs, vocab_size]
        if any(not isinstance(c, (int, np.integer)) for c in cutoffs) or any(np.diff(edges) <= 0):
            raise ValueError(
                f"Clusters: cutoffs must be integers that rise, above 0 and below vocab_size {vocab_size}, "
                f"got {list(cutoffs)}"
            )
        self.edges = [int(edge) for edge in edges]
        self.widths = [width // shrink**i for i in range(len(edges) - 1)]
        if self.widths[-1] == 0:
            raise ValueError(f"Clusters: width {width} has no channel for cluster {len(cutoffs)} with shrink {shrink}")
        self.shrink = shrink

    def __len__(self) -> int:
        return len(self.widths)

    @property
    def tables(self) -> list[tuple[int, int]]:
        """Tokens and channels of each table."""
        if self.shrink == 1:
            return [(self.edges[-1], self.widths[0])]
        return list(zip(np.diff(self.edges).tolist(), self.widths, strict=True))

    def place(self, cluster: int) -> tuple[int, slice]:
        """Return which table has the tokens of a cluster, and which rows of it they are."""
        if self.shrink == 1:
            return 0, slice(self.edges[cluster], self.edges[cluster + 1])
        return cluster, slice(0, self.edges[cluster + 1] - self.edges[cluster])

    def of(self, ids: Array) -> Array:
        """Return the cluster of each token."""
        return np.searchsorted(self.edges[1:-1], ids, side="right")


class AdaptiveEmbedding(Module):
    """Row `ids` of the table of their cluster, mapped to one width, times the square root of that.

    Frequent tokens have more channels than rare ones, which are most (Baevski and Auli, "Adaptive Input Representations
    for Neural Language Modeling", 2019).

    Parameters
    ----------
    clusters : Clusters
        How the vocabulary is cut, and the channels of each part.
    width : int
        Size of a row of the result.
    std, map_std : float, optional
        Of the initial tables, 1/sqrt(width) by default, so that rows have elements of about 1, and of the maps,
        1/sqrt(channels).
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
        std: float | None = None,
        map_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        initial.size("AdaptiveEmbedding", width=width)
        self.clusters, self.width = clusters, width
        scale = math.sqrt(width)
        std = 1 / scale if std is None else std
        self.tables = [Embedding(n, d, scale=scale, std=std, dtype=dtype, rng=rng) for n, d in clusters.tables]
        mapped = clusters.shrink > 1 or clusters.widths[0] != width
        self.maps = [
            Linear(d, width, bias=False, transposed=True, std=map_std, dtype=dtype, rng=rng)
            for _, d in clusters.tables
            if mapped
        ]

    def __call__(self, ids: Array, *, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return the rows, (..., width), and their backward; ``backward(dy)`` gives None.

        Tables and maps of clusters that no token is in get no gradient.
        """
        if len(self.tables) == 1:
            x, backward = self.tables[0](ids, ctx=ctx)
            backwards = [backward]
            if self.maps:
                x, backward = self.maps[0](x)
                backwards.append(backward)
            return x, Backward(chain, backwards)
        parts = []
        pieces = []
        for cluster, places, rows in self._parts_of(ids):
            x, look_up = self.tables[cluster](rows, ctx=ctx)
            x, project = self.maps[cluster](x)
            pieces.append((places, x))
            parts.append((places, [look_up, project]))
        return self._joined(ids, pieces), Backward(self._backward, [parts])

    def _backward(self, saved: list[Any], dy: Array) -> None:
        (parts,) = take(saved)
        flat = dy.reshape(-1, self.width)
        for places, backwards in parts:
            chain(backwards, ops.embedding(flat, beside(places, flat)))

    def infer(self, ids: Array, *, dtype: np.dtype[Any] | None = None) -> Array:
        """Return the rows, in `dtype` where one is given."""
        if len(self.tables) == 1:
            x = self.tables[0].infer(ids, dtype=dtype)
            return self.maps[0].infer(x) if self.maps else x
        return self._joined(
            ids,
            [
                (places, self.maps[cluster].infer(self.tables[cluster].infer(rows, dtype=dtype)))
                for cluster, places, rows in self._parts_of(ids)
            ],
        )

    def _parts_of(self, ids: Array) -> list[tuple[int, Array, Array]]:
        """Return for each cluster with tokens: its number, where they are and their rows in its table."""
        flat = ids.reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.clusters.edges[-1]):
            raise ValueError(f"AdaptiveEmbedding: ids must be in [0, {self.clusters.edges[-1]})")
        of = self.clusters.of(flat)
        found = [(i, np.flatnonzero(of == i)) for i in range(len(self.clusters))]
        return [(i, places, flat[places] - self.clusters.edges[i]) for i, places in found if places.size]

    def _joined(self, ids: Array, pieces: list[tuple[Array, Array]]) -> Array:
        table = self.tables[0].weight.value
        y = empty((ids.size, self.width), pieces[0][1].dtype if pieces else table.dtype, like=table)
        for places, x in pieces:
            y[beside(places, y)] = x
        return y.reshape(*ids.shape, self.width)
