"""Short versions of the rounds of tests/soak, which says under which stress numformer holds."""

import os
import sys

import pytest
from conftest import SEED
from soak import rounds

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured by Linux's means")


def test_all_kernels_from_16_threads(threads):
    threads(2)
    assert rounds.python_threads(SEED, 2.0)["calls"] >= 16


@linux
def test_memory_of_small_calls():
    assert rounds.small_calls(SEED, 20_000)["calls"] == 20_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_fork_after_use():
    assert rounds.forks(6)["pre-fork"] == 6


@linux
def test_idle_threads_sleep_when_told_to():
    assert rounds.idle(OMP_WAIT_POLICY="passive")["ms after a call"] < 5
