import sys
from typing import Any

import cuda_host
import numpy as np
import pytest
import tolerance


@pytest.fixture(scope="session")
def core() -> Any:
    return cuda_host.load()


@pytest.fixture(scope="session")
def gpu(core: Any) -> Any:
    return cuda_host.Calls(core)


@pytest.fixture(autouse=True)
def schedule(request: pytest.FixtureRequest, rng: np.random.Generator) -> None:
    """Threads and blocks run in an order of each test's own: a result that depends on it would miss a barrier."""
    wanted = "core" in request.fixturenames
    module = request.getfixturevalue("core") if wanted else sys.modules.get("_cuda_host")
    if module is not None and not cuda_host.TRUE:
        module.set_schedule(int(rng.integers(1, 2**63)))


@pytest.fixture
def fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    """16-bit operands of the fragment product are P and dS, rounded; float16 has nothing between 0 and 2^-24."""
    plain = tolerance.flush
    monkeypatch.setattr(
        tolerance, "of_pairs", lambda dtype, options: tolerance.u(dtype) if dtype.itemsize == 2 else 0.0
    )
    monkeypatch.setattr(tolerance, "flush", lambda dtype: 2.0**-24 if dtype == np.float16 else plain(dtype))
