"""numformer-cuda is a distribution of its own, of the same version; nothing of it is in numformer's wheel."""

import re
import tomllib
from pathlib import Path

import gpu
import numformer as nf
import pytest

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")


def project(path):
    return tomllib.loads((gpu.ROOT / path).read_text())


def test_versions_agree():
    ours, theirs = project("pyproject.toml")["project"], project("cuda/pyproject.toml")["project"]
    assert theirs["version"] == ours["version"]
    assert f"numformer=={ours['version']}" in theirs["dependencies"]
    assert f"numformer-cuda=={ours['version']}" in ours["optional-dependencies"]["cuda"]
    assert set(theirs["optional-dependencies"]["cupy"]) <= set(ours["optional-dependencies"]["cuda"])
    assert theirs["requires-python"] == ours["requires-python"]
    assert project("cuda/pyproject.toml")["build-system"] == project("pyproject.toml")["build-system"]


def test_licences_are_those_of_the_tree():
    for name in ("LICENSE", "licenses/pybind11.txt"):
        assert (gpu.PACKAGE / name).read_bytes() == (gpu.ROOT / name).read_bytes()


def test_numformer_is_built_without_it():
    text = (gpu.ROOT / "CMakeLists.txt").read_text()
    assert re.search(r"option\(NUMFORMER_CUDA .* OFF\)", text)
    build = project("pyproject.toml")["tool"]["scikit-build"]
    assert build["wheel"]["packages"] == ["python/numformer"]
    assert "NUMFORMER_CUDA" not in str(build)
    assert project("cuda/pyproject.toml")["tool"]["scikit-build"]["cmake"]["define"] == {"NUMFORMER_CUDA": "ON"}


def test_its_own_wheel_is_told_by_its_name():
    """scikit-build-core gives CMake the name with an underscore."""
    for path in ("CMakeLists.txt", "cmake/cuda.cmake"):
        names = re.findall(r'SKBUILD_PROJECT_NAME STREQUAL "(.*?)"', (gpu.ROOT / path).read_text())
        assert names == [project("cuda/pyproject.toml")["project"]["name"].replace("-", "_")]


def test_no_file_of_it_is_in_the_package():
    """Of the package that runs here; tools/check-wheel looks at wheels."""
    folder = Path(nf.__file__).parent
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts]
    assert not [name for name in files if "cuda" in name.lower() or name.endswith((".cu", ".cubin", ".fatbin"))]
    module = next(path for path in folder.glob("_core*") if path.suffix in (".so", ".pyd"))
    content = module.read_bytes()
    assert not [name for name in (b"libcudart", b"cublasLt", b"cuLaunchKernel", b"__nv_cudaEntity") if name in content]
