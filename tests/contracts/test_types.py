"""The types that a user's checker sees: those of the native module are generated, and up to date."""

import ast
import importlib.resources
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from numformer import _core

ROOT = Path(__file__).resolve().parents[2]
STUB = importlib.resources.files("numformer") / "_core.pyi"


def test_the_package_is_typed():
    assert (importlib.resources.files("numformer") / "py.typed").is_file()


def test_stub_is_what_the_module_says(tmp_path):
    if not (ROOT / "tools" / "make-stubs").is_file():
        pytest.skip("tools/ is not here: this is an installed package")
    for module in ("pybind11_stubgen", "ruff"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, of the extra 'dev'")
    made = tmp_path / "_core.pyi"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "tools" / "make-stubs", made], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert made.read_text() == STUB.read_text(), "run tools/make-stubs and commit python/numformer/_core.pyi"


def functions():
    """The functions of the native module, by name, with the number of arguments that the stub gives them."""
    tree = ast.parse(STUB.read_text())
    return {f.name: len(f.args.posonlyargs + f.args.args) for f in tree.body if isinstance(f, ast.FunctionDef)}


def test_every_function_has_types():
    public = {name: value for name, value in vars(_core).items() if callable(value) and not name.startswith("_")}
    native = {name for name, value in public.items() if not isinstance(value, type)}
    assert {name for name in public if f"class {name}:" in STUB.read_text()} == public.keys() - native
    assert set(functions()) == native and len(native) > 40
    assert "*args" not in STUB.read_text()


@pytest.mark.parametrize("name", sorted(functions()))
def test_signature_in_words_has_the_arguments_of_the_function(name):
    """The words are written beside the function, not made from it; pybind11 tells what it really takes."""
    with pytest.raises(TypeError, match="incompatible function arguments") as raised:
        getattr(_core, name)(*[object()] * 40)
    real = re.search(r"^    1\. \((.*)\) -> ", str(raised.value), re.MULTILINE)
    assert real is not None, str(raised.value)
    assert functions()[name] == len(re.findall(r"\w+: ", real.group(1)))
