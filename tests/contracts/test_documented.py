"""Every public name has a docstring and a place in the reference; what documentation shows is what happens."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numformer as nf
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {  # where the names of each module stand
    "numformer": ("functions", "runtime"),
    "numformer.profiling": ("runtime",),
    "numformer.nn": ("nn",),
    "numformer.models": ("models",),
    "numformer.optim": ("optim",),
    "numformer.train": ("train",),
    "numformer.data": ("data",),
    "numformer.reference": ("reference",),
}
MODULES = {name.removeprefix("numformer.") for name in PAGES} | {"ops"}

needs_docs = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not here: this is an installed package")


def public(module: str) -> list[str]:
    return [name for name in importlib.import_module(module).__all__ if name not in MODULES | {"__version__"}]


def listed(page: str, module: str) -> set[str]:
    """The names in the lists of a page, under ``currentmodule:: module``."""
    text = (DOCS / "api" / f"{page}.rst").read_text(encoding="utf-8")
    names: set[str] = set()
    for part in re.split(r"^\.\. currentmodule:: ", text, flags=re.MULTILINE)[1:]:
        if part.split("\n", 1)[0].strip() == module:
            for block in re.findall(r"^\.\. autosummary::\n(?:   :.*\n)*\n((?:   \w+\n)+)", part, re.MULTILINE):
                names |= set(block.split())
    return names


@needs_docs
@pytest.mark.parametrize("module", PAGES)
def test_every_public_name_is_in_the_reference(module):
    found = set().union(*(listed(page, module) for page in PAGES[module]))
    elsewhere = set() if module in ("numformer", "numformer.reference") else set(public("numformer"))
    missing = sorted(set(public(module)) - found - elsewhere)
    assert not missing, f"add {', '.join(missing)} to docs/api/{PAGES[module][0]}.rst"
    here = importlib.import_module(module)
    assert not [name for name in found if not hasattr(here, name)]


@pytest.mark.parametrize("module", PAGES)
def test_every_public_name_has_a_docstring(module):
    here = importlib.import_module(module)
    for name in public(module):
        thing = getattr(here, name)
        assert len(inspect.getdoc(thing) or "") > 20, f"{module}.{name}"


def modules() -> list[str]:
    found = [name for _, name, _ in pkgutil.walk_packages(nf.__path__, "numformer.")]
    return ["numformer", *(name for name in found if not name.endswith(("__main__", "._core")))]


def run_examples(examples: doctest.DocTest) -> str:
    """Run one piece of documentation; what is printed where it is wrong."""
    printed: list[str] = []
    with np.printoptions(precision=4, suppress=True):
        doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
            examples, out=printed.append
        )
    return "".join(printed)


@pytest.fixture
def few_threads(threads, tmp_path, monkeypatch):
    """A folder of its own, and the number of threads put back."""
    monkeypatch.chdir(tmp_path)


def with_examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for name in modules():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "numformer").startswith("numformer"):
                raise
            continue  # needs an extra that is not installed
        for test in finder.find(module, name):
            if test.examples:
                found[test.name] = test
    return list(found.values())


@pytest.mark.usefixtures("few_threads")
@pytest.mark.parametrize("examples", with_examples(), ids=lambda test: test.name)
def test_docstring(examples):
    assert run_examples(examples) == ""


def test_there_are_examples():
    names = {test.name for test in with_examples()}
    functions = [name for name in public("numformer") if inspect.isfunction(getattr(nf, name))]
    shown = [f for f in functions if any(name.endswith(f".{f}") for name in names)]
    assert len(shown) >= 20, sorted(set(functions) - set(shown))


def pages() -> list[Path]:
    return [path for path in sorted(DOCS.rglob("*.md")) if ">>> " in path.read_text(encoding="utf-8")]


@needs_docs
@pytest.mark.usefixtures("few_threads")
@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(DOCS)))
def test_page(page):
    text = page.read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(text.replace("```", "\n"), {}, page.name, str(page), 0)
    assert examples.examples and run_examples(examples) == ""


@needs_docs
def test_drawings_have_the_constants_of_the_kernels(tmp_path):
    tool = ROOT / "tools" / "draw_kernels.py"
    if not tool.is_file():
        pytest.skip("tools/ is not here")
    subprocess.run([sys.executable, tool, "--out", tmp_path], check=True, timeout=60)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 3
    for path in made:
        assert path.read_text() == (DOCS / "images" / path.name).read_text(), "run tools/draw_kernels.py"
