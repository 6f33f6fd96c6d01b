"""`nf.profile` on a GPU: times by events in its table, ranges for NVIDIA's tools."""

import cuda_host
import gpu
import gpu_twin
import numformer as nf
import numpy as np
import pytest
from arrays import normal

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")


@pytest.fixture
def device():
    with gpu.standing_in(gpu_twin.core) as found:
        yield found


@cuda_host.stand_in
def test_the_table_has_times_of_events(device, rng):
    x = gpu.put(normal(rng, 100, 100))
    nf.relu(x)
    with nf.profile() as p:
        for _ in range(3):
            nf.relu(x)
        nf.matmul(x, x)
        assert not device.counts  # nobody waits meanwhile
    assert device.counts == {"event": 4}
    lines = p.table().split("on the GPU, by events:\n")[1].splitlines()
    assert lines[0].split() == ["kernel", "calls", "ms", "share", "GB/s"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:3]}
    assert rows["activation"] == ["3", "3000.000", "75.0%", "0.0"]
    assert rows["matmul"][:3] == ["1", "1000.000", "25.0%"]
    before = device.clock
    nf.relu(x)
    assert device.clock == before  # off, no event is recorded


def test_bytes_are_those_of_the_arrays(device, rng, monkeypatch):
    """Events a microsecond apart: 40 KB read and written in it are 80 GB/s."""
    x = gpu.put(normal(rng, 100, 100))
    with nf.profile() as p:
        nf.relu(x)
        import numformer_cuda.timing as timing

        monkeypatch.setattr(timing._events, "get_elapsed_time", lambda start, stop: 0.001)
    assert p.table().splitlines()[-2].split()[-1] == "80.0"


def test_the_kernel_of_attention_is_named(device, rng):
    q = gpu.put(normal(rng, 5, 8))
    with nf.profile() as p:
        nf.attention(q, q, q)
    assert "attention, mma.sync" in p.table()


def test_a_profile_that_began_before_the_first_call(device, rng):
    with nf.profile() as p:
        nf.relu(gpu.put(normal(rng, 3)))
    assert "activation" in p.table()


def test_warmup_is_forgotten(device, rng):
    x = gpu.put(normal(rng, 3))
    with nf.profile(skip=1, warmup=1, record=1) as p:
        for _ in range(4):
            nf.relu(x)
            p.step()
    assert p.table().splitlines()[-2].split()[:2] == ["activation", "1"]


@cuda_host.stand_in
def test_ranges_are_marked(device, rng):
    layer = nf.nn.Linear(3, 2, rng=np.random.default_rng(0)).to("cuda")
    x = gpu.put(normal(rng, 4, 3))
    layer.infer(x)
    device.marks.clear()
    with nf.profile(), nf.profile.range("outer"):
        layer.infer(x)
    assert device.marks[0] == "outer" and "Linear" in device.marks[1] and device.marks[2:] == ["/", "/"]
    layer.infer(x)
    assert len(device.marks) == 4


def test_without_a_gpu_nothing_is_said(rng):
    x = normal(rng, 3)
    with nf.profile() as p:
        nf.relu(x)
    assert "GPU" not in p.table()
