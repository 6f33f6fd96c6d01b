"""The check of wheels finds what it is for."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from numformer import _core

ROOT = Path(__file__).resolve().parents[2]
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
INFO = "numformer-1.0.dist-info/"
LICENCES = ("LICENSE", *(f"licenses/{name}" for name in ("pybind11.txt", "GPL-3.0.txt", "GCC-exception-3.1.txt")))


@pytest.fixture(scope="module")
def parts():
    if not (ROOT / "tools" / "check-wheel").is_file() or sys.platform != "linux":
        pytest.skip("tools/ is not here, or this is not Linux")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("the tags below are those of a Python with a GIL")
    licences = [*LICENCES, "licenses/Apache-2.0-LLVM-exception.txt"]
    metadata = "Name: numformer\nLicense-Expression: BSD-3-Clause\n" + "".join(f"License-File: {x}\n" for x in licences)
    return {
        "numformer/__init__.py": b"",
        "numformer/_core.pyi": b"",
        f"numformer/{Path(_core.__file__).name}": b"no ELF file",
        "numformer.libs/libgomp-1234.so.1.0.0": b"x",
        f"{INFO}WHEEL": f"Tag: {TAG}-{TAG}-manylinux_2_28_x86_64\n".encode(),
        f"{INFO}METADATA": metadata.encode(),
        **{f"{INFO}licenses/{name}": (ROOT / name).read_bytes() for name in licences},
    }


@pytest.fixture(scope="module")
def built():
    return Path(_core.__file__).read_bytes()


def check(folder, parts, *options, platform="manylinux_2_28_x86_64"):
    path = folder / f"numformer-1.0-{TAG}-{TAG}-{platform}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        for name, content in parts.items():
            wheel.writestr(name, content)
    command = [sys.executable, ROOT / "tools" / "check-wheel", "--platform", "manylinux_2_", *options, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_good_wheel(parts, built, tmp_path):
    if b"__asan_init" in built:
        pytest.skip("a build with sanitizers exports what they need")
    status, said = check(tmp_path, {**parts, f"numformer/{Path(_core.__file__).name}": built})
    assert (status, "all right" in said) == (0, True), said


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"numformer.libs/libgomp-5678.so.1.0.0": b"x"}, "more than one OpenMP library"),
        ({"numformer.libs/libopenblas-12.so": b"x"}, "libraries that nothing is known of"),
        ({"numformer/secret.key": b"x"}, "numformer/secret.key is no part"),
        ({"tests/test_it.py": b""}, "tests/test_it.py is no part"),
        ({"numformer_cuda/__init__.py": b""}, "numformer_cuda/__init__.py is no part"),
        ({"numformer/_cuda.cpython-311-x86_64-linux-gnu.so": b"x"}, "_cuda.cpython-311-x86_64-linux-gnu.so is no part"),
        ({"numformer/_core.pyi": None}, "numformer/_core.pyi is missing"),
        ({f"{INFO}licenses/licenses/GPL-3.0.txt": None}, "licence licenses/GPL-3.0.txt is missing"),
        ({f"{INFO}licenses/LICENSE": b"all rights reserved"}, "LICENSE does not say"),
        ({f"{INFO}WHEEL": b"Tag: cp310-cp310-linux_x86_64\n"}, "its tags are"),
        ({"numformer/_core.cpython-310-x86_64-linux-gnu.so": b"x"}, "one native module"),
    ],
)
def test_what_is_wrong_is_named(parts, tmp_path, change, complaint):
    changed = {name: content for name, content in {**parts, **change}.items() if content is not None}
    status, said = check(tmp_path, changed)
    assert status == 1 and complaint in said, said


def test_size_and_platform(parts, tmp_path):
    status, said = check(tmp_path, parts, "--most-mb", "0.001", platform="linux_x86_64")
    assert status == 1 and "at most 0.001 are promised" in said and "expected manylinux_2_" in said


def test_stripped_and_exporting(parts, built, tmp_path):
    name = f"numformer/{Path(_core.__file__).name}"
    stripped = tmp_path / "stripped.so"
    tool = shutil.which("strip")
    if tool is None:
        pytest.skip("no strip here")
    stripped.write_bytes(built)
    subprocess.run([tool, stripped], check=True)
    assert "it was stripped" in check(tmp_path, {**parts, name: stripped.read_bytes()})[1]
    exporting = built.replace(b"PyInit__core\0", b"PyInit__bore\0")
    assert "exports ['PyInit__bore']" in check(tmp_path, {**parts, name: exporting})[1]
