"""`info()["cuda"]` says whether the CUDA backend is usable and, if not, why; nothing heavy is imported to know it."""

import importlib
import sys

import cuda_host
import gpu
import gpu_twin
import numformer as nf
import pytest
from processes import answer

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")


def test_importing_numformer_imports_neither_the_backend_nor_cupy():
    code = f"""
    import sys
    sys.path.insert(0, {str(gpu.PACKAGE)!r})
    import numformer, numformer.nn, numformer.models, numformer.train
    print([name for name in sys.modules if name.split(".")[0] in ("cupy", "numformer_cuda")])
    """
    assert answer(code) == "[]"


@cuda_host.stand_in
def test_usable():
    with gpu.standing_in(gpu_twin.core):
        found = nf.info()["cuda"]
    assert found == {
        "usable": True,
        "reason": None,
        "version": nf.__version__,
        "runtime": "13.0",
        "driver": "13.0",
        "device": "Stand-in",
        "capability": "9.0",
        "devices": 1,
    }


def test_the_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(gpu.PACKAGE)])
    if importlib.util.find_spec("numformer_cuda") is not None:
        pytest.skip("numformer-cuda is installed here")
    found = nf.info()["cuda"]
    assert found["usable"] is False
    assert "numformer-cuda is not installed" in found["reason"]
    with pytest.raises(RuntimeError, match="device 'cuda' cannot be used: numformer-cuda is not installed"):
        nf.nn.Linear(2, 2).to("cuda")


def test_cupy_is_not_installed(monkeypatch):
    with gpu.standing_in(gpu_twin.core):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            sys.modules["numformer_cuda"], "find_spec", lambda name: None if name == "cupy" else find(name)
        )
        found = nf.info()["cuda"]
    assert found["usable"] is False
    assert "CuPy is not installed" in found["reason"]


def test_the_native_module_cannot_be_loaded(monkeypatch):
    with gpu.standing_in(None):
        monkeypatch.setitem(sys.modules, "numformer_cuda._core", None)  # what import takes for "there is none"
        found = nf.info()["cuda"]
    assert found["usable"] is False
    assert "native module cannot be loaded" in found["reason"]


@cuda_host.stand_in
def test_there_is_no_driver(monkeypatch):
    def library():
        raise OSError("libcuda.so.1: cannot open shared object file")

    with gpu.standing_in(gpu_twin.core):
        monkeypatch.setattr(sys.modules["numformer_cuda.driver"], "library", library)
        found = nf.info()["cuda"]
        with pytest.raises(RuntimeError, match="cannot be used: there is no NVIDIA driver"):
            nf.relu(gpu.put(gpu.np.ones(3)))
    assert "there is no NVIDIA driver (libcuda.so.1" in found["reason"]


@cuda_host.stand_in
@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ({"version": 12040}, "the NVIDIA driver is too old: it supports CUDA 12.4, and 13.0 is needed"),
        ({"devices": 0}, "no NVIDIA GPU"),
        ({"init": 100}, "no NVIDIA GPU"),
        ({"init": 803}, "cannot be initialised (error 803)"),
        ({"name": b"Old", "capability": (7, 5)}, "Old is too old: its compute capability is 7.5, and 8.0 is needed"),
    ],
)
def test_driver_and_device(driver, words):
    with gpu.standing_in(gpu_twin.core, **driver):
        found = nf.info()["cuda"]
    assert found["usable"] is False
    assert words in found["reason"]


def test_a_driver_of_the_same_major_version_is_new_enough(monkeypatch):
    monkeypatch.setattr(gpu_twin.core, "runtime_version", 13050)
    with gpu.standing_in(gpu_twin.core, version=13000):
        assert nf.info()["cuda"]["usable"]


def test_another_version_of_the_package(monkeypatch):
    with gpu.standing_in(gpu_twin.core):
        monkeypatch.setattr(sys.modules["numformer_cuda"], "__version__", "9.9")
        assert "numformer-cuda 9.9 goes with numformer 9.9" in nf.info()["cuda"]["reason"]


def test_this_machine():
    """The true driver's library, or that there is none: a reason, and no other exception."""
    with gpu.standing_in(gpu_twin.core):
        driver = importlib.reload(sys.modules["numformer_cuda.driver"])
        try:
            reason, found = "", driver.query(12040)
        except driver.Unusable as error:
            reason, found = str(error), {"devices": 0}
    assert ("NVIDIA" in reason or "capability" in reason) == (found["devices"] == 0)
