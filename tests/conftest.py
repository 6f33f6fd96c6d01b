"""What all tests share: the random generator with its seed in the report's header, and quiet threads."""

import os
import secrets
import zlib

# Two libraries whose idle threads spin would fight for the processors. Both are read when the libraries load.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Set here, before xdist starts its workers, so that all have the same.
SEED = int(os.environ.setdefault("NUMFORMER_TEST_SEED", str(secrets.randbelow(2**32))))

import numformer as nf  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


def pytest_report_header(config: pytest.Config) -> str:
    return f"numformer {nf.__version__} at {nf.info()['isa']}, NUMFORMER_TEST_SEED={SEED}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = (yield).get_result()
    if report.failed:
        report.sections.append(("seed", f"NUMFORMER_TEST_SEED={SEED} NUMFORMER_ISA={nf.info()['isa']}"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of its own for each test, from the seed and the test's name: the order of tests changes nothing."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture
def threads():
    """Puts the number of threads back."""
    before = nf.get_num_threads()
    yield nf.set_num_threads
    nf.set_num_threads(before)
