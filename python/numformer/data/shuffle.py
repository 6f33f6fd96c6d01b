"""An order by chance of any length, of which nothing is kept: each place is computed when it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROUNDS = 8
_GOLDEN, _MIX1, _MIX2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Permutation:
    """A permutation of 0, ..., count - 1 that is a function of (seed, epoch).

    A Feistel network is a permutation whatever its round function is (M. Luby, C. Rackoff, "How to construct
    pseudorandom permutations from pseudorandom functions", 1988). It runs over the numbers of as many bits as `count`
    needs, and what falls behind `count` walks on until it is below (J. Black, P. Rogaway, "Ciphers with arbitrary
    finite domains", 2002), fewer than two times on average. Halves differ by one bit where the bits are odd. The round
    function is the mixing of SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, 2014), its keys are drawn by Philox.

    Parameters
    ----------
    count : int
        How many, in [1, 2**62].
    seed, epoch : int
        The key; of the seed the lowest 64 bits count.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.data import Permutation
    >>> sorted(Permutation(5, seed=1, epoch=0)(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, count: int, *, seed: int, epoch: int = 0) -> None:
        if not 1 <= count <= 2**62:
            raise ValueError(f"Permutation: count must be between 1 and 2**62, got {count}")
        if epoch < 0:
            raise ValueError(f"Permutation: epoch must be at least 0, got {epoch}")
        self.count = count
        bits = max((count - 1).bit_length(), 2)
        self._low, self._high = bits // 2, bits - bits // 2
        rng = np.random.Generator(np.random.Philox(key=(seed % 2**64) | (epoch << 64)))
        self._keys = rng.integers(0, 2**64, ROUNDS, dtype=np.uint64)

    def __call__(self, places: Array) -> Array:
        """Return what stands at these places, int64; ValueError where one is not in [0, count)."""
        x = np.asarray(places)
        if x.size and not 0 <= int(x.min()) <= int(x.max()) < self.count:
            raise ValueError(f"Permutation: places must be in [0, {self.count}), got {x.min()} to {x.max()}")
        y = self._network(x.astype(np.uint64))
        while (outside := y >= np.uint64(self.count)).any():
            y[outside] = self._network(y[outside])
        return y.astype(np.int64)

    def _network(self, x: Array) -> Array:
        low, high = self._low, self._high
        left, right = x >> np.uint64(low), x & _mask(low)  # of `high` and of `low` bits
        for number, key in enumerate(self._keys):
            # The halves keep their widths and take turns in being changed, so that there need be no swap.
            if number % 2:
                right = right ^ (_mixed(left ^ key) & _mask(low))
            else:
                left = left ^ (_mixed(right ^ key) & _mask(high))
        return (left << np.uint64(low)) | right


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mixed(x: Array) -> Array:
    x = x + _GOLDEN  # modulo 2**64
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))
