"""What a profile records, and when."""

import json
import os
import threading
import time

import numformer as nf
import numpy as np
import pytest
from numformer import nn
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW
from numformer.profiling.ceilings import Ceilings
from processes import answer

X = np.ones((48, 32), np.float32)
CEILINGS = Ceilings(
    "a processor",
    "v3",
    nf.get_num_threads(),
    100.0,
    50.0,
    200.0,
    {"L1": 400.0, "DRAM": 20.0},
    {"L1": 32768},
    2.0,
    "2026-01-01",
)


def _step() -> tuple[GPT, AdamW, tuple[np.ndarray, np.ndarray]]:
    model = GPT(GPTConfig(vocab_size=31, context=16, layers=2, heads=2, width=16), rng=0)
    ids, targets = np.random.default_rng(0).integers(0, 31, (2, 3, 16))
    return model, AdamW(model.parameters(), lr=1e-3), (ids, targets)


def test_records_say_what_ran():
    with nf.profile() as p:
        nf.softmax(X)
        nf.matmul(X, X.T)
        nf.relu(X.astype(np.float64))
    records = p.records()
    assert records["name"].tolist() == ["softmax", "matmul", "relu"]
    assert records["dtype"].tolist() == ["float32", "float32", "float64"]
    assert records["shape"][1].tolist() == [1, 48, 32, 48, 0, 0]
    assert records["layer"].tolist() == ["", "", ""]
    assert (records["end_ns"] >= records["start_ns"]).all()
    assert (records["start_ns"][1:] >= records["end_ns"][:-1]).all()
    assert set(records["thread"]) == {threading.get_native_id()}
    assert p.dropped == 0
    before = len(records)
    nf.softmax(X)
    assert len(p.records()) == before, "nothing is recorded once it is over"


def test_to_pandas():
    pandas = pytest.importorskip("pandas")
    with nf.profile() as p:
        nf.matmul(X, X.T)
    frame = p.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["name"].tolist() == ["matmul"] and frame["shape"].tolist() == ["1, 48, 32, 48"]


def test_a_full_ring_keeps_the_newest_and_the_sums():
    with nf.profile(capacity=5) as p:
        for n in range(1, 13):
            nf.relu(np.ones(n, np.float32))
    assert p.records()["shape"][:, 0].tolist() == [8, 9, 10, 11, 12]
    assert p.dropped == 7
    sums = p.recording.sums
    assert sums["calls"].sum() == 12 and sums["flops"].sum() == sum(range(1, 13))
    assert "7 calls are in these sums" in p.table()


@pytest.mark.parametrize(("options", "error"), [({"capacity": 0}, ValueError), ({"capacity": 2.0}, TypeError)])
def test_bad_numbers(options, error):
    with pytest.raises(error, match="profile: capacity must be"):
        nf.profile(**options)
    with pytest.raises(ValueError, match="record must be at least 1, got 0"):
        nf.profile(record=0)


def test_one_at_a_time():
    with nf.profile() as p:
        with pytest.raises(RuntimeError, match="another profile is on"), nf.profile():
            pass
        with pytest.raises(RuntimeError, match="on already"):
            p.__enter__()
        nf.relu(X)
    assert p.records()["name"].tolist() == ["relu"]
    with pytest.raises(RuntimeError, match="inside the with block"):
        p.step()
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        nf.profile().records()


def test_it_ends_with_an_error():
    p = nf.profile()

    def fails():
        with p:
            nf.relu(X)
            nf.matmul(X, X)

    with pytest.raises(ValueError, match="b must"):
        fails()
    nf.relu(X)
    assert len(p.records()) == 1


def test_ranges_nest():
    with nf.profile() as p:
        with nf.profile.range("outer"):
            nf.relu(X)
            with nf.profile.range("inner"):
                nf.softmax(X)
        with nf.profile.range("outer"):
            nf.relu(X)
    assert p.records()["layer"].tolist() == ["outer", "outer/inner", "outer"]
    assert p.ranges()["layer"].tolist() == ["outer/inner", "outer", "outer"]
    inner, outer, _ = p.ranges()
    assert outer["start_ns"] <= inner["start_ns"] <= inner["end_ns"] <= outer["end_ns"]
    with pytest.raises(TypeError, match="label must be a str, got int"):
        nf.profile.range(3)


def test_ranges_close_when_the_profile_ends_first():
    p = nf.profile(record=1)
    with p, nf.profile.range("open"):
        nf.relu(X)
        p.step()
        nf.relu(X)
    assert p.records()["layer"].tolist() == ["open"] and p.ranges()["layer"].tolist() == ["open"]
    with nf.profile() as q:
        nf.relu(X)
    assert q.records()["layer"].tolist() == [""], "nothing stays open for the next profile"


def test_a_range_without_a_profile_does_nothing():
    outside = nf.profile.range("before")
    outside.__enter__()
    with nf.profile() as p:
        nf.relu(X)
        outside.__exit__(None, None, None)
    assert len(p.ranges()) == 0


def test_layers_name_themselves():
    model, optimizer, batch = _step()
    call = nn.Linear.__call__
    with nf.profile() as p:
        _, backward = model.loss(batch)
        backward()
        optimizer.step()
    assert nn.Linear.__call__ is call, "methods are as they were"
    layers = set(p.records()["layer"])
    for expected in (
        "GPT/tokens",
        "GPT/blocks.1/attention",
        "GPT/blocks.1/attention/qkv",
        "GPT/cross_entropy",
        "GPT backward/blocks.0/mlp/inner",
        "GPT backward/norm",
        "AdamW.step",
    ):
        assert expected in layers, sorted(layers)
    assert not any("tokens/tokens" in layer for layer in layers), "a method that calls its own object is one range"


def test_layers_of_classes_that_are_made_meanwhile():
    with nf.profile() as p:

        class Twice(nn.Module):
            def __init__(self):
                self.maps = [nn.Linear(32, 32, rng=np.random.default_rng(0)) for _ in range(2)]

            def infer(self, x):
                return self.maps[1].infer(self.maps[0].infer(x))

        Twice().infer(X)
    assert p.records()["layer"].tolist() == ["Twice/maps.0", "Twice/maps.1"]


def test_threads_have_paths_of_their_own():
    def work():
        with nf.profile.range("work"):
            nf.relu(X)

    with nf.profile() as p, nf.profile.range("main"):
        workers = [threading.Thread(target=work, name="worker") for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        nf.softmax(X)
    records = p.records()
    assert sorted(records["layer"]) == ["main", "work", "work", "work"]
    assert len(set(records["thread"])) >= 2
    assert set(records["thread"][records["layer"] == "main"]) == {threading.get_native_id()}


def test_schedule():
    p = nf.profile(skip=2, warmup=1, record=2)
    with p:
        for step in range(8):
            with nf.profile.range("step"):
                nf.relu(np.ones(step + 1, np.float32))
            p.step()
    assert p.records()["shape"][:, 0].tolist() == [4, 5]
    assert p.ranges()["layer"].tolist() == ["step", "step"]
    assert p.steps == 8 and p.recording.steps >= 2


def test_a_range_around_the_warm_up_goes_on():
    p = nf.profile(warmup=1, record=1)
    with p, nf.profile.range("epoch"):
        nf.relu(X)
        p.step()
        nf.softmax(X)
        p.step()
    assert p.records()["name"].tolist() == ["softmax"] and p.records()["layer"].tolist() == ["epoch"]
    epoch = p.ranges()[0]
    assert epoch["end_ns"] - epoch["start_ns"] <= p.recording.wall_ns


def test_accounts_for_its_time():
    model, optimizer, batch = _step()
    with nf.profile() as p:
        begin = time.perf_counter_ns()
        with nf.profile.range("a gap with a name"):
            time.sleep(0.02)
        time.sleep(0.01)
        wall = time.perf_counter_ns() - begin
    accounted = p.recording.accounted()
    assert 0.02 <= accounted["named_gaps"] <= wall * 1e-9
    assert accounted["unnamed"] >= 0.01
    with nf.profile() as p:
        _, backward = model.loss(batch)
        backward()
        optimizer.step()
    accounted = p.recording.accounted()
    total = accounted["kernels"] + accounted["named_gaps"] + accounted["unnamed"]
    assert total == pytest.approx(accounted["wall"], rel=1e-6)
    assert sum(p.recording.own_ns()[0]) == p.recording.wall_ns


def test_a_training_step_is_accounted_for():
    """Kernels, and gaps in layers that have names, are nearly all of it: Python between the three calls is the rest."""
    model = GPT(GPTConfig(vocab_size=61, context=64, layers=3, heads=4, width=96), rng=0)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    ids, targets = np.random.default_rng(0).integers(0, 61, (2, 4, 64))
    shares = []
    for _ in range(5):  # the machine may take a pause in the little that has no name
        with nf.profile() as p:
            for _ in range(2):
                _, backward = model.loss((ids, targets))
                backward()
                optimizer.step()
        shares.append(p.recording.accounted()["share"])
    assert max(shares) >= 0.97


def test_tables():
    model, _, batch = _step()
    with nf.profile() as p:
        model.loss(batch)
    for by in ("kernel", "shape", "layer"):
        with_ceilings = p.table(by, ceilings=CEILINGS)
        assert "a processor" in with_ceilings and "memory" in with_ceilings and "%" in with_ceilings
    assert "matmul (1, 48, 16, 48) float32" in p.table("shape")
    assert "GPT/blocks.0/attention/qkv" in p.table("layer")
    with pytest.raises(ValueError, match="by must be 'kernel', 'shape' or 'layer', got 'thread'"):
        p.table("thread")
    with nf.profile() as p:
        pass
    assert "wall" in p.table() and len(p.records()) == 0


def test_share_of_the_ceiling():
    """The least time of a call is the longer one of arithmetic and memory."""
    from numformer.profiling.summary import rows

    with nf.profile() as p:
        nf.matmul(np.ones((64, 64), np.float32), np.ones((64, 64), np.float32))
        nf.relu(np.ones(1 << 20, np.float32))
    found = {row.name: row for row in rows(p.recording, "kernel", CEILINGS)}
    assert found["matmul"].bound == "arithmetic"
    assert found["matmul"].least == pytest.approx(2 * 64**3 / 100e9)
    assert found["relu"].bound == "memory"
    assert found["relu"].least == pytest.approx(2 * 4 * (1 << 20) / 20e9)
    assert found["relu"].share_of_ceiling == pytest.approx(found["relu"].least / found["relu"].seconds)


def test_threads_of_a_kernel(threads):
    threads(2)
    with nf.profile() as p:
        nf.softmax(np.ones((2000, 500), np.float32))
    (record,) = p.records()
    assert record["threads"] == 2 and record["forks"] >= 1
    assert 0 < record["slowest_ns"] <= record["parallel_ns"] <= record["end_ns"] - record["start_ns"]
    assert record["slowest_ns"] <= record["busy_ns"] <= 2 * record["slowest_ns"]


def test_memory_is_seen():
    with nf.profile() as p:
        kept = nf.relu(np.ones(1 << 20, np.float32))
    assert p.records()["pool_bytes"][0] >= kept.nbytes
    assert len(p.recording.samples) == 1
    if os.path.exists("/proc/self/statm"):
        assert p.recording.samples["resident_bytes"][0] > kept.nbytes


def test_a_forked_child_is_not_recorded_and_answers():
    code = """
        import os, sys, threading, warnings
        import numpy as np, numformer as nf
        warnings.simplefilter("ignore")
        x = np.ones((200, 200), np.float32)
        stop = False
        def busy():
            while not stop:
                nf.relu(x)
        with nf.profile() as p:
            worker = threading.Thread(target=busy, daemon=True)
            worker.start()
            good = 0
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    nf.softmax(x)
                    with nf.profile.range("child"):
                        nf.softmax(x)
                    os._exit(0)
                good += os.waitpid(pid, 0)[1] == 0
            stop = True
            worker.join()
        print(good, set(p.records()["name"].tolist()))
    """
    assert answer(code) == "10 {'relu'}"


# Chrome's "Trace Event Format", the parts that are used.
FIELDS = {
    "X": {"name": str, "cat": str, "ph": str, "pid": int, "tid": int, "ts": float, "dur": float, "args": dict},
    "C": {"name": str, "ph": str, "pid": int, "tid": int, "ts": float, "args": dict},
    "M": {"name": str, "ph": str, "pid": int, "tid": int, "args": dict},
}


def test_trace(tmp_path):
    model, optimizer, batch = _step()

    def work():
        with nf.profile.range("on the side"):
            nf.relu(X)

    with nf.profile() as p:
        side = threading.Thread(target=work, name="side")
        side.start()
        with nf.profile.range('a "range" </script>'):
            _, backward = model.loss(batch)
            backward()
            optimizer.step()
        side.join()
    path = tmp_path / "trace.json"
    p.save(path)
    trace = json.loads(path.read_text())
    events = trace["traceEvents"]
    for event in events:
        fields = FIELDS[event["ph"]]
        assert set(event) == set(fields)
        for name, kind in fields.items():
            assert isinstance(event[name], kind), (name, event)
    timed = [event for event in events if event["ph"] != "M"]
    assert [e["ts"] for e in timed] == sorted(e["ts"] for e in timed) and timed[0]["ts"] >= 0
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert any("MainThread" in name for name in named.values())
    stretches = [event for event in timed if event["ph"] == "X"]
    assert {e["tid"] for e in stretches} <= set(named)
    assert sum(e["cat"] == "kernel" for e in stretches) == len(p.records())
    assert sum(e["cat"] == "layer" for e in stretches) == len(p.ranges())
    for thread in named:
        open_ends: list[tuple[float, str]] = []
        for event in (e for e in stretches if e["tid"] == thread):
            start, end = event["ts"], round(event["ts"] + event["dur"], 3)
            while open_ends and open_ends[-1][0] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1][0], "a stretch lies inside the one around it"
            if event["cat"] == "kernel" and event["args"]["layer"]:
                assert open_ends and open_ends[-1][1] == event["args"]["layer"], "in the layer that it names"
            if event["cat"] == "layer":
                open_ends.append((end, event["args"]["path"]))
    counters = [event for event in timed if event["ph"] == "C"]
    assert {event["name"] for event in counters} == {"memory", "pool"}
    assert all(value >= 0 for event in counters for value in event["args"].values())
