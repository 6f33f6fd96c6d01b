import sys
from typing import Any

import cuda_host
import numpy as np
import pytest


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
