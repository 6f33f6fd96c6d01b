"""A call goes to the backend that holds its arrays; it waits for nothing and copies nothing."""

import inspect
import sys

import cuda_host
import gpu
import gpu_twin
import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, normal
from numformer import ops
from numformer.models import GPT, GPTConfig
from numformer.nn import Context
from numformer.ops import dispatch

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")


@pytest.fixture
def device():
    with gpu.standing_in(gpu_twin.core) as found:
        gpu_twin.calls.clear()
        yield found


def test_every_function_is_sent_where_its_arrays_are(device):
    """By the source: a function takes its kernel from `dispatch.core`, which has all of `numformer_cuda.backend`."""
    backend = dispatch.cuda()
    for name in vars(dispatch.core):
        assert callable(getattr(backend, name)), name
    for name in set(ops.__all__) - {"to_dlpack", "from_dlpack", "matmul_backward"}:
        module = inspect.getmodule(inspect.unwrap(getattr(ops, name)))
        assert module._core is dispatch.core, name


@cuda_host.stand_in
def test_host_arrays_stay_on_the_host(device, rng):
    x = normal(rng, 3, 5)
    assert type(nf.relu(x)) is np.ndarray
    assert type(nf.matmul(x, x.T)) is np.ndarray
    assert not gpu_twin.calls
    assert not device.counts


@cuda_host.stand_in
def test_device_arrays_stay_on_the_device(device, rng):
    x = normal(rng, 3, 5)
    y = nf.gelu(gpu.put(x))
    assert type(y) is gpu.ndarray
    np.testing.assert_array_equal(gpu.got(y), nf.gelu(x))
    assert gpu_twin.calls == ["activation"]
    assert not device.counts


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda host, there: nf.matmul(host, there), "matmul: b must be in the processor's memory"),
        (lambda host, there: nf.matmul(there, host), "matmul: b must be on the GPU"),
        (lambda host, there: nf.matmul(there, there, bias=host[0]), "matmul: bias must be on the GPU"),
        (lambda host, there: nf.matmul(there, there, out=host), "matmul: out must be on the GPU"),
        (lambda host, there: nf.matmul(host, host, out=there), "matmul: out must be a numpy.ndarray"),
        (lambda host, there: nf.add(there, host), "add: b must be on the GPU"),
        (lambda host, there: nf.attention(there, there, host), "attention: v must be on the GPU"),
        (lambda host, there: nf.attention(host, there, host), "attention: k must be in the processor's memory"),
        (lambda host, there: nf.layer_norm(there, host[0]), "layer_norm: weight must be on the GPU"),
        (
            lambda host, there: nf.sgd_update([there], [host], None, lr=0.1),
            r"grads\[0\] must be on the GPU",
        ),
        (
            lambda host, there: nf.sgd_update([host], [there], None, lr=0.1),
            r"grads\[0\] must be in the processor",
        ),
        (lambda host, there: nf.global_norm([there, host]), r"global_norm: arrays\[1\] must be on the GPU"),
        (lambda host, there: nf.global_norm([host, there]), r"global_norm: arrays\[1\] must be in the processor's mem"),
        (lambda host, there: nf.embedding(there, np.array([1])), "embedding: ids must be on the GPU"),
        (lambda host, there: nf.matmul_backward(there, host, there), "matmul_backward: "),
    ],
)
def test_mixing_host_and_device(device, rng, call, words):
    host = normal(rng, 4, 4)
    there = gpu.put(host)
    before = gpu.got(there).copy(), host.copy()
    with pytest.raises((TypeError, ValueError), match=words):
        call(host, there)
    assert not gpu_twin.calls
    np.testing.assert_array_equal(gpu.got(there), before[0])
    np.testing.assert_array_equal(host, before[1])


@cuda_host.stand_in
def test_another_library_by_dlpack(device, rng):
    """No copy, and its owner is told the stream."""
    x = normal(rng, 3, 5)
    foreign = gpu.Foreign(x)
    y = nf.relu(foreign)
    assert type(y) is gpu.ndarray
    np.testing.assert_array_equal(gpu.got(y), np.maximum(x, 0))
    assert foreign.streams == [gpu.STREAM]
    same = nf.from_dlpack(foreign)
    assert same.data.ptr == x.ctypes.data
    out = gpu.Foreign(np.zeros((3, 3), np.float32))
    nf.matmul(foreign, gpu.put(x.T), out=out)
    np.testing.assert_allclose(out.host, x @ x.T, rtol=1e-5, atol=1e-5)
    assert nf.to_dlpack(y) is y
    assert not device.counts
    with pytest.raises(TypeError, match="add: b must be on the GPU, where other arguments are, got a Foreign"):
        nf.add(y, gpu.Foreign(x, device=1))
    assert device.counts == {}


def test_a_generator_of_arrays(device, rng):
    arrays = [normal(rng, 7) for _ in range(3)]
    expected = nf.global_norm(iter(arrays))
    # Squares are added in an order of each device's own, in float64.
    assert nf.global_norm(gpu.put(x) for x in arrays) == pytest.approx(expected, rel=1e-14)
    assert nf.global_norm(iter([])) == 0


@cuda_host.stand_in
def test_nothing_waits_and_nothing_is_copied(device, rng):
    """Layouts that kernels read are read where they are, as on the CPU; of another one a copy is made on the device."""
    q, k, v = (gpu.put(normal(rng, 2, 4, 6, 8)) for _ in range(3))
    views = [x.swapaxes(1, 2) for x in (q, k, v)]
    out, lse = nf.attention(*views, causal=True, return_lse=True)
    nf.attention_backward(out, *views, out, lse, causal=True)
    x, weight, bias = gpu.put(normal(rng, 5, 8)), gpu.put(normal(rng, 8)), gpu.put(normal(rng, 8))
    y, mean, rstd = nf.layer_norm(x, weight, bias, return_stats=True)
    nf.layer_norm_backward(y, x, mean, rstd, weight, bias=True, residual=x)
    matrix = gpu.put(normal(rng, 8, 8))
    nf.matmul(x, matrix.T, bias=bias, activation="gelu", residual=x, save_preactivation=True)
    nf.matmul(x.T, x, out=matrix, accumulate=True)
    nf.matmul_backward(x, x, matrix, bias=bias)
    targets = gpu.put(np.array([1, 0, -100, 7, 2]))
    loss, lse = nf.cross_entropy(x, targets, return_lse=True)
    nf.cross_entropy_backward(1.0, x, targets, lse)
    nf.cross_entropy_backward(loss, x, targets, lse)
    nf.embedding_backward(x, targets, 8)
    nf.dropout(x, 0.5, seed=1, residual=x)
    nf.softmax(x)
    nf.sum_rows(x)
    nf.adamw_update([matrix], [matrix], [matrix], [matrix], lr=0.1, step=1)
    assert set(gpu_twin.calls) >= {"attention", "attention_backward", "matmul", "layer_norm", "adam_update"}
    assert not device.counts
    nf.relu(x.T)
    assert device.counts == {"copy": 1}


@cuda_host.stand_in
def test_lengths_are_on_the_host(device, rng):
    q = gpu.put(normal(rng, 9, 2, 4))
    starts = np.array([0, 4, 9])
    got = gpu.got(nf.attention_varlen(q, q, q, starts, starts, causal=True))
    np.testing.assert_array_equal(got, nf.attention_varlen(*[gpu.got(q)] * 3, starts, starts, causal=True))
    assert device.counts == {"to_device": 2}  # the lengths
    with pytest.raises(TypeError, match=r"attention_varlen: cu_seqlens_q must be a numpy\.ndarray: lengths are"):
        nf.attention_varlen(q, q, q, gpu.put(starts), gpu.put(starts))


@cuda_host.stand_in
def test_memory_that_does_not_suffice(device, rng):
    x = gpu.put(normal(rng, 64, 64))
    device.limit = 1000
    with pytest.raises(MemoryError):
        nf.matmul(x, x)
    assert not gpu_twin.calls
    device.limit = None
    np.testing.assert_array_equal(gpu.got(nf.matmul(x, x)), nf.matmul(gpu.got(x), gpu.got(x)))


@cuda_host.stand_in
def test_memory_that_ends_anywhere_in_a_step(device, rng):
    """At each of the allocations in turn: a MemoryError, after which the same step is what it always was."""
    model = GPT(GPTConfig(vocab_size=11, context=6, layers=1, heads=2, width=8, dropout=0.1), rng=1).to("cuda")
    batch = rng.integers(0, 11, (2, 2, 6))

    def step():
        model.zero_grad()
        loss, backward = model.loss(batch, ctx=Context(seed=1))
        backward()
        return [loss, *(gpu.got(gradient).copy() for gradient in model.gradients().values())]

    expected, allowed = step(), 0
    while True:
        device.left = allowed
        try:
            step()
        except MemoryError:
            device.left, allowed = None, allowed + 1
            for one, other in zip(step(), expected, strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            break
    assert allowed > 30


@cuda_host.stand_in
def test_an_error_of_the_device_surfaces_where_one_waits(device, rng):
    import numformer_cuda

    y = nf.relu(gpu.put(normal(rng, 3)))
    device.failed = True
    nf.relu(y)  # does not wait
    with pytest.raises(numformer_cuda.DeviceError, match="illegal memory access") as caught:
        numformer_cuda.synchronize()
    assert isinstance(caught.value.__cause__, gpu.CUDARuntimeError)
    numformer_cuda.synchronize()
    device.failed = True
    with pytest.raises(numformer_cuda.DeviceError, match="illegal memory access"):
        ops.memory.on_host(y)
    device.failed = True
    with pytest.raises(numformer_cuda.DeviceError, match="illegal memory access"):
        nf.global_norm([y])


@cuda_host.stand_in
def test_an_error_of_the_device_that_an_allocation_or_a_profile_meets(device, rng, monkeypatch):
    import cupy
    import numformer_cuda

    x = gpu.put(normal(rng, 3, 3))

    def broken(*arguments):
        raise gpu.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    for name, call in (
        ("empty", lambda: nf.relu(x)),
        ("asarray", lambda: ops.memory.beside(np.ones(3), x)),
        ("cuda.alloc", lambda: nf.sum_rows(x)),
    ):
        with monkeypatch.context() as patched:
            *path, last = name.split(".")
            patched.setattr(getattr(cupy, path[0]) if path else cupy, last, broken)
            if name == "cuda.alloc":  # the CPU's kernels ask for no scratch
                patched.setattr(gpu_twin.core, "sum_rows", lambda *arguments: arguments[-2](8))
            with pytest.raises(numformer_cuda.DeviceError, match=r"an error, perhaps of an earlier call: .*Illegal"):
                call()
    profile = nf.profile()
    profile.__enter__()
    nf.relu(x)
    device.failed = True
    with pytest.raises(numformer_cuda.DeviceError, match="illegal memory access"):
        profile.__exit__(None, None, None)
    np.testing.assert_array_equal(gpu.got(nf.relu(x)), nf.relu(gpu.got(x)))


@cuda_host.stand_in
def test_an_error_at_the_launch(device, rng, monkeypatch):
    import numformer_cuda

    def activation(*arguments):
        raise RuntimeError("cudaErrorInvalidConfiguration")

    monkeypatch.setattr(gpu_twin.core, "activation", activation)
    with pytest.raises(numformer_cuda.DeviceError, match="activation: cudaErrorInvalidConfiguration"):
        nf.relu(gpu.put(normal(rng, 3)))


@cuda_host.stand_in
def test_what_there_is_no_kernel_for(device, rng, monkeypatch):
    x = gpu.put(normal(rng, 3))
    monkeypatch.delattr(gpu_twin.core, "rmsprop_update")
    with pytest.raises(NotImplementedError, match="rmsprop_update: it is not implemented on a GPU yet"):
        nf.rmsprop_update([x], [x], [x], lr=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_have_the_dtypes_of_the_cpu(device, rng, dtype):
    x = normal(rng, 3, 4, dtype=dtype)
    for call in (nf.softmax, nf.silu, nf.sum_rows, lambda x: nf.matmul(x, x.T), lambda x: nf.cast(x, np.float32)):
        assert call(gpu.put(x)).dtype == call(x).dtype


@cuda_host.stand_in
def test_the_stand_in_is_taken_away():
    with gpu.standing_in(gpu_twin.core):
        x = gpu.put(np.ones(3))
        nf.relu(x)
    assert "numformer_cuda" not in sys.modules
    with pytest.raises(ValueError, match="relu: x must be in the processor's memory, got an array on CUDA"):
        nf.relu(x)
