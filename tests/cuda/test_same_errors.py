"""The wrong calls of tests/contracts/test_bad_calls.py, with their arrays on the device: the same errors."""

import importlib.util
import re

import gpu
import gpu_twin
import numformer as nf
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")

# What is in an array on the GPU is not looked at: these calls give NaN there, or leave the place out.
VALUES = {
    "attention alibi_slopes finite nan",
    "cross_entropy targets 8",
    "cross_entropy targets -1",
    "cross_entropy_backward targets 99",
    "linear_cross_entropy targets 6",
    "embedding ids 4",
    "embedding ids -1",
    "embedding_backward ids 9",
}
# Of arrays that there are on the host only.
HOST = {"matmul out writeable"}


class OnDevice:
    """numformer, with the arrays of every call put on the device."""

    def __getattr__(self, name):
        function = getattr(nf, name)
        if name in ("to_dlpack", "set_num_threads", "set_pool_limit"):
            return function

        def call(*arguments, **options):
            lengths = {name: value for name, value in options.items() if name.startswith("cu_seqlens")}
            return function(*map(_put, arguments), **{name: _put(value) for name, value in options.items()} | lengths)

        return call


def _put(x):
    if isinstance(x, np.ndarray) and (x.dtype == object or not x.dtype.isnative):  # CuPy has none
        return x
    if isinstance(x, np.ndarray) and not x.flags.c_contiguous:
        return gpu.as_it_lies(x)
    if isinstance(x, np.generic):
        return gpu.put(np.asarray(x))
    if isinstance(x, (list, tuple)):
        return type(x)(map(_put, x))
    return gpu.put(x)


def bad_calls():
    path = gpu.ROOT / "tests" / "contracts" / "test_bad_calls.py"
    spec = importlib.util.spec_from_file_location("bad_calls_on_the_device", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.nf = OnDevice()
    return module.BAD


BAD = bad_calls()


@pytest.fixture(scope="module")
def device():
    with gpu.standing_in(gpu_twin.core) as found:
        yield found


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_call(device, number):
    call, kind, words = BAD[number]
    if words in HOST:
        pytest.skip("of an array on the host")
    gpu_twin.calls.clear()
    if words in VALUES:
        call()
        assert gpu.TRUE or gpu_twin.calls
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    wanted = re.findall(r"\([^)]*\)|[^\s(]+", words)
    missing = [word for word in wanted if word not in message]
    assert not missing, f"{message!r} does not say {missing}"
    assert type(caught.value) is kind, f"{type(caught.value).__name__} {message!r}, expected {kind.__name__}"
    assert not gpu_twin.calls, "something was launched before the checks"


def test_there_are_enough():
    assert sum(words not in VALUES | HOST for _, _, words in BAD) >= 60


def test_what_lies_outside_is_nan(device):
    X = gpu.put(np.ones((4, 8), np.float32))
    assert np.isnan(gpu.got(nf.embedding(X, gpu.put(np.array([0, 4]))))).all(axis=1).tolist() == [False, True]
