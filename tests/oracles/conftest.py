"""Outside judges: skipped without PyTorch, unless NUMFORMER_REQUIRE_ORACLES=1 says that a skip is a failure."""

import importlib.util
import os
from pathlib import Path

import pytest

REQUIRED = os.environ.get("NUMFORMER_REQUIRE_ORACLES", "0") not in ("", "0")

if REQUIRED and importlib.util.find_spec("torch") is None:
    raise pytest.UsageError("NUMFORMER_REQUIRE_ORACLES is set, but torch is not installed")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = (yield).get_result()
    if REQUIRED and report.skipped and Path(__file__).parent in item.path.parents:
        report.outcome, report.longrepr = "failed", f"{item.nodeid} skipped, but NUMFORMER_REQUIRE_ORACLES is set"
