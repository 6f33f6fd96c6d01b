"""Short versions of the rounds of tests/soak, which says under which stress numformer holds."""

import os
import random
import sys

import pytest
from conftest import SEED
from soak import hostile, rounds, watched

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured by Linux's means")


def test_all_kernels_from_16_threads(threads):
    threads(2)
    assert rounds.python_threads(SEED, 2.0)["calls"] >= 16


@linux
def test_memory_of_small_calls():
    assert rounds.small_calls(SEED, 20_000)["calls"] == 20_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_fork_after_use():
    """In a process of its own: other libraries, where they are loaded, complain of every fork."""
    done = rounds.in_child("from soak import rounds; print(rounds.forks(6)['pre-fork'])")
    assert done.returncode == 0 and done.stdout.strip() == "6", done.stdout + done.stderr


@linux
def test_idle_threads_sleep_when_told_to():
    assert rounds.idle(OMP_WAIT_POLICY="passive")["ms after a call"] < 5


REPORT = """
==12== Conditional jump or move depends on uninitialised value(s)
==12==    at 0x4A1B2C: PyUnicode_New (unicodeobject.c:1)
==12==    by 0x4A1B2D: main
==12==
==12== Invalid read of size 8
==12==    at 0x5A1B2C: nf::v3::softmax(nf::SoftmaxArgs const&) (softmax.cpp:12)
==12==    by 0x4A1B2D: main
==12==
==12== 80 bytes in 1 blocks are definitely lost in loss record 3 of 4
==12==    at 0x484: malloc (vg_replace_malloc.c:1)
==12==    by 0x5A1B2E: PyInit__core (module.cpp:5)

Direct leak of 64 byte(s) in 1 object(s) allocated from:
    #0 0x7f in malloc (libasan.so.8+0xb)
    #1 0x7e in nf::ops::PackedMatrix::PackedMatrix csrc/ops/packed_matrix.cpp:20
"""


def test_what_is_ours_in_a_report():
    found = watched.blocks(REPORT)
    assert len(found) == 2 and "softmax" in found[0] and "PackedMatrix" in found[1]


@pytest.mark.parametrize("depth", [10, 400, 900, 1200, 5000])
def test_alterations_of_deep_files(depth):
    """What alterations made too deep for our own JSON is altered still: guided fuzzing alters what it altered."""
    value = b"[" * depth + b"]" * depth
    header = b'{"a": ' + value + b"}"
    for content in (value, len(header).to_bytes(8, "little") + header):
        for seed in range(40):
            assert isinstance(hostile.altered(content, random.Random(seed)), bytes)
