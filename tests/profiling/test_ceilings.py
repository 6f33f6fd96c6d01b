"""Ceilings: measured, kept, and read from a file that may hold anything."""

import dataclasses
import json

import numformer as nf
import pytest
from numformer.profiling import ceilings

GOOD = ceilings.Ceilings(
    ceilings.processor(),
    nf.info()["isa"],
    3,
    100.0,
    50.0,
    200.0,
    {"L1": 400.0, "L3": 80.0, "DRAM": 20.0},
    {"L1": 32768, "L3": 1 << 20},
    2.5,
    "2026-01-01",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "numformer" / "ceilings.json"


def test_kept_and_found_again(cache):
    assert ceilings.path() == cache and ceilings.load(3) is None
    ceilings.keep([GOOD, dataclasses.replace(GOOD, threads=1, float32=40.0)])
    assert ceilings.load(3) == GOOD
    assert ceilings.load(1).float32 == 40.0
    assert ceilings.load(2) is None, "of another number of threads they say nothing"
    ceilings.keep([dataclasses.replace(GOOD, float32=110.0)])
    assert ceilings.load(3).float32 == 110.0 and ceilings.load(1).float32 == 40.0
    other = dataclasses.replace(GOOD, processor="another processor", float32=1.0)
    ceilings.keep([other])
    assert ceilings.load(3).float32 == 110.0
    assert len(json.loads(cache.read_text())["ceilings"]) == 3


def test_a_relative_cache_folder_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert ceilings.path().parts[-3:] == (".cache", "numformer", "ceilings.json")


def _entry(**changes):
    return dataclasses.asdict(GOOD) | changes


HOSTILE = {
    "empty": "",
    "not JSON": "{",
    "cut short": json.dumps({"ceilings": [_entry()]})[:-20],
    "not an object": "[1, 2]",
    "deep": "[" * 100_000,
    "no list": json.dumps({"ceilings": {"a": 1}}),
    "entries of another kind": json.dumps({"ceilings": [1, None, "x", [], {}]}),
    "text for a number": json.dumps({"ceilings": [_entry(float32="100")]}),
    "true for a number": json.dumps({"ceilings": [_entry(float32=True)]}),
    "zero": json.dumps({"ceilings": [_entry(float64=0)]}),
    "negative": json.dumps({"ceilings": [_entry(fork_join_us=-1)]}),
    "NaN": json.dumps({"ceilings": [_entry(float32=float("nan"))]}),
    "infinite": json.dumps({"ceilings": [_entry(bandwidth={"DRAM": float("inf")})]}),
    "huge integer": json.dumps({"ceilings": [_entry(float32=10**400)]}),
    "no DRAM": json.dumps({"ceilings": [_entry(bandwidth={"L1": 3.0})]}),
    "threads": json.dumps({"ceilings": [_entry(threads=3.0)]}),
    "control characters": json.dumps({"ceilings": [_entry(date="\x1b[2J")]}),
    "long text": json.dumps({"ceilings": [_entry(date="x" * 10_000)]}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert ceilings.load(3) is None
    ceilings.keep([GOOD])
    assert ceilings.load(3) == GOOD


def test_other_hostile_files(cache):
    cache.mkdir(parents=True)
    assert ceilings.load(3) is None, "a folder"
    cache.rmdir()
    cache.write_bytes(b"\xff\xfe" * 100)
    assert ceilings.load(3) is None, "not UTF-8"
    cache.write_text(json.dumps({"ceilings": [_entry()] * 5}) + " " * (1 << 20))
    assert ceilings.load(3) is None, "too long to be ours"


def test_a_bad_entry_is_named():
    with pytest.raises(ValueError, match="ceilings: an entry must have 'threads'"):
        ceilings.parse({})
    with pytest.raises(ValueError, match="ceilings: out of range: -3"):
        ceilings.parse(_entry(float32=-3))


def test_levels_and_least_times():
    # 3 threads share what a call moves
    assert GOOD.level(3 * 32768) == "L1" and GOOD.level(3 * 32768 + 3) == "L3"
    assert GOOD.level(3 * (1 << 20) + 3) == "DRAM"
    arithmetic, memory = GOOD.seconds(1e9, 1e9, "float64")
    assert arithmetic == pytest.approx(1 / 50) and memory == pytest.approx(1 / 20)
    assert GOOD.seconds(1e9, 0, "float16")[0] == pytest.approx(1 / 100)
    assert GOOD.seconds(1e9, 0, "bfloat16")[0] == pytest.approx(1 / 200)
    assert "float32 100" in GOOD.text() and "L3 80, DRAM 20" in GOOD.text()


@pytest.mark.parametrize("pairs", [83.0, 900.0])
def test_bfloat16_is_never_below_float32(monkeypatch, pairs):
    """Where the instruction for pairs is the slower way, what it could reach by widening is the ceiling."""
    rates = {"float32": 171.0, "float64": 85.0, "bfloat16": pairs}
    monkeypatch.setattr(ceilings._core, "ceiling_gflops", lambda dtype, loops: rates[dtype])
    monkeypatch.setattr(ceilings, "load", lambda threads: None)
    best = max(pairs, 171.0)
    assert ceilings.multiply_adds("bfloat16", 1000) == best and ceilings.multiply_adds("float64", 1000) == 85.0
    assert ceilings.arithmetic("bfloat16") == 1e9 * best and ceilings.arithmetic("float16") == 171e9
    measured = ceilings.measure(seconds=0.0005, rounds=1)
    assert (measured.float32, measured.float64, measured.bfloat16) == (171.0, 85.0, best)


def test_measured(threads):
    threads(1)
    measured = ceilings.measure(seconds=0.0005, rounds=1)
    assert measured.threads == 1 and measured.processor == ceilings.processor()
    assert ceilings.parse(json.loads(json.dumps(dataclasses.asdict(measured)))) == measured
    assert measured.float32 > 0.1 and measured.bandwidth["DRAM"] > 0.01
