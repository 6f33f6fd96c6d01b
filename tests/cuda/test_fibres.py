"""The host's device layer: shuffles and barriers do what the device's do, and wrong use is an error."""

import cuda_host
import ml_dtypes
import numpy as np
import pytest

pytestmark = cuda_host.stand_in

HERE = np.arange(128).reshape(2, 2, 32)  # block, warp, lane


def test_shuffle_gives_the_right_lane(core):
    assert np.array_equal(core.probe(0, 2), np.roll(HERE, -1, axis=-1).ravel())
    assert np.array_equal(core.probe(1, 2), HERE[..., np.arange(32) ^ 5].ravel())


def test_barrier_shows_what_others_wrote(core):
    assert np.array_equal(core.probe(2, 3), np.arange(192).reshape(3, 64)[:, ::-1].ravel())


def test_votes(core):
    got = np.reshape(core.probe(3, 2), (2, 2, 32))
    assert (got[1] - got[0] == 1).all()  # thread 40 of block 1 only, and all threads of the block see it
    assert (got[0, 0] == 0).all() and (got[0, 1] == 2).all()  # a lane of warp 1


def test_sums_of_a_block(core):
    blocks = np.arange(128).reshape(2, 64)
    assert np.array_equal(core.probe(12, 2), np.repeat(64 * blocks.sum(axis=1) + 63, 64))


def test_a_missing_barrier_shows_in_some_order(core):
    want = np.arange(64)[::-1]
    for seed in range(1, 20):
        core.set_schedule(seed)
        assert np.array_equal(core.probe(2, 1), want)  # with the barrier in any
    core.set_schedule(0)
    assert not np.array_equal(core.probe(13, 1), want)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (4, "63 at a barrier .the first is thread 0.; 1 ended .the first is thread 7"),
        (5, "for their warp .the first is thread 0, in shuffle.*2 ended .the first is thread 9"),
        (6, "lanes of a warp meet in different operations: shuffle and shuffle_xor"),
        (7, "32 at a barrier .* 32 for their warp .the first is thread 16, in shuffle"),
        (8, "shared memory: element 64 of 64"),
        (9, "shared memory: 528 bytes are taken of the launch's 512"),
    ],
)
def test_wrong_use_is_reported(core, which, message):
    core.set_schedule(0)
    with pytest.raises(core.KernelError, match=message):
        core.probe(which, 1)
    assert len(core.probe(0, 1)) == 64  # and the next kernel runs


def test_shared_memory_begins_as_nan(core):
    assert all(core.probe(11, 1))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_fragments_multiply(core, rng, dtype, transposed):
    """C = A B through load_matrices and multiply_add, of small whole numbers: exact."""
    a, b = (rng.integers(-8, 9, (16, 16)).astype(dtype) for _ in range(2))
    c = np.full((16, 16), np.nan, np.float32)
    stored_a, stored_b = (np.ascontiguousarray(x) for x in ((a.T, b) if transposed else (a, b.T)))
    addresses = (x.__array_interface__["data"][0] for x in (stored_a, stored_b, c))
    core.fragments(*addresses, dtype is ml_dtypes.bfloat16, transposed)
    assert np.array_equal(c, a.astype(np.float32) @ b.astype(np.float32))
