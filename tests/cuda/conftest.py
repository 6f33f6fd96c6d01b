from typing import Any

import cuda_host
import pytest


@pytest.fixture(scope="session")
def core() -> Any:
    return cuda_host.load()


@pytest.fixture(scope="session")
def gpu(core: Any) -> Any:
    return cuda_host.Calls(core)
