"""What compute capability 9.0 adds, as the host has it: layouts of the PTX ISA, and wrong use is an error."""

import cuda_host
import ml_dtypes
import numpy as np
import pytest

pytestmark = cuda_host.stand_in

DTYPES = [np.float16, ml_dtypes.bfloat16]


def address(x):
    return x.__array_interface__["data"][0]


@pytest.fixture
def use(core):
    ones = np.ones((64, 64), ml_dtypes.bfloat16)
    return lambda which: np.array(core.hopper_use(address(ones), which))


@pytest.mark.parametrize("first", [(0, 0, 0, 0), (40, 9, 1, 2), (-3, -5, 2, 0), (0, 0, 3, 0), (64, 0, 0, 0)])
def test_a_box_is_swizzled(core, rng, first):
    """Units of 16 bytes lie at their place exclusive-or the row in an atom of 8; outside the matrix are zeros."""
    memory = rng.integers(1, 2**16, (3, 4, 30, 96), dtype=np.uint16)  # batch, row, head, column: heads within rows
    x = memory.swapaxes(1, 2)[..., :80]
    batches, heads, rows, columns = x.shape
    box = np.zeros((16, 64), np.uint16)
    for r in range(16):
        for c in range(64):
            column, row, head, batch = first[0] + c, first[1] + r, first[2], first[3]
            if 0 <= column < columns and 0 <= row < rows and head < heads:
                box[r, c] = x[batch, head, row, column]
    units = box.reshape(16, 8, 8)
    want = np.stack([[units[r, u ^ (r % 8)] for u in range(8)] for r in range(16)]).reshape(16, 64)
    out = np.zeros((16, 64), np.uint16)
    strides = [x.strides[axis] // 2 for axis in (2, 1, 0)]
    core.hopper_box(address(x), [columns, rows, heads, batches], strides, list(first), 16, address(out))
    assert np.array_equal(out, want)


@pytest.mark.parametrize(
    ("offset", "sizes", "strides"),
    [
        (1, [64, 8, 1, 1], [64, 0, 0]),
        (0, [64, 8, 1, 1], [60, 0, 0]),
        (0, [64, 8, 2, 1], [64, -512, 0]),
        (0, [64, 0, 1, 1], [64, 0, 0]),
    ],
)
def test_what_cannot_be_tiled(core, offset, sizes, strides):
    x, out = np.zeros(2048, np.uint16), np.zeros((8, 64), np.uint16)
    start = -address(x) % 16 // 2
    core.hopper_box(address(x[start:]), [64, 8, 1, 1], [64, 0, 0], [0, 0, 0, 0], 8, address(out))
    with pytest.raises(ValueError, match="TMA cannot read this"):
        core.hopper_box(address(x[start + offset :]), sizes, strides, [0, 0, 0, 0], 8, address(out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("kind_of_a", [0, 1, 2])
@pytest.mark.parametrize("b_transposed", [False, True])
def test_a_warpgroup_multiplies(core, rng, dtype, columns, kind_of_a, b_transposed):
    """Of small whole numbers: exact."""
    a, b = rng.integers(-8, 9, (64, 64)).astype(dtype), rng.integers(-8, 9, (64, columns)).astype(dtype)
    stored_a = np.ascontiguousarray(a.T if kind_of_a == 1 else a)
    stored_b = np.ascontiguousarray(b if b_transposed else b.T)
    c = np.full((64, columns), np.nan, np.float32)
    bfloat = dtype is ml_dtypes.bfloat16
    core.hopper_product(*map(address, (stored_a, stored_b, c)), columns, bfloat, kind_of_a, b_transposed)
    assert np.array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


def test_phases_are_waited_for(use):
    assert (use(0) == 789).all()


def test_some_warps_meet(use):
    assert np.array_equal(use(1), [-1] * 128 + list(range(128)))
    assert np.array_equal(use(2), [0] * 128 + [1] * 128)


def test_batches_of_products(use):
    assert (use(3) == 48).all()  # three products of 16 ones


def test_what_is_under_way_is_nan(core, use):
    core.set_schedule(0)  # a copy ends as late as it may
    assert np.isnan(use(5)).all()
    assert np.isnan(use(8)).all()


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (4, "256 for something .the first is thread [0-9]+, in wait_phase"),
        (6, "a barrier in shared memory was not initialised"),
        (7, "a product without begin_products"),
        (9, "shared memory changed while a product read it"),
        (10, "a thread ended before its products"),
        (11, "the warps of a warpgroup began different products"),
        (12, "barrier 1: .* threads, others said"),
        (13, "a block ended while something was under way"),
        (14, "the warps of a warpgroup began different numbers of products"),
        (15, "a block ended with threads counted at barrier 2"),
        (16, "256 for something .the first is thread [0-9]+, in wait_phase"),
    ],
)
def test_wrong_use_is_reported(core, use, which, message):
    core.set_schedule(0)
    with pytest.raises(core.KernelError, match=message):
        use(which)
    assert (use(3) == 48).all()  # and the next kernel runs
