"""What a profile that is off costs: instructions, counted by callgrind beside a build without the profiler.

tools/without-profiler makes that build. Valgrind knows no AVX-512, so both run at v3 or below, on one thread.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numformer as nf
import pytest

WITHOUT = os.environ.get("NUMFORMER_WITHOUT_PROFILER", "")

pytestmark = [
    pytest.mark.skipif(not WITHOUT, reason="NUMFORMER_WITHOUT_PROFILER does not name a build without the profiler"),
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind is installed to count instructions"),
    pytest.mark.skipif("v3" not in nf.info()["isa_available"], reason="this machine has no AVX2"),
]

MATMUL = """
    import numpy as np, numformer as nf
    a = np.ones((32, 32), np.float32)
    for _ in range(20):
        nf.matmul(a, a)
"""

STEP = """
    import numpy as np, numformer as nf
    from numformer.models import GPT, GPTConfig
    from numformer.optim import AdamW, decay_groups
    model = GPT(GPTConfig(vocab_size=64, context=32, layers=2, heads=2, width=64), rng=0)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, clip_norm=1.0)
    ids, targets = np.random.default_rng(0).integers(0, 64, (2, 4, 32))
    def step():
        _, backward = model.loss((ids, targets))
        backward()
        optimizer.step()
    step()
    nf.set_num_threads(1)  # a mark
    step()
    step()
    nf.set_num_threads(1)
"""


def _run(package: str, code: str, tmp_path: Path, *options: str) -> str:
    """Run Python under callgrind; return what callgrind says."""
    environment = {
        **os.environ,
        "PYTHONPATH": package,
        "NUMFORMER_ISA": "v3",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={tmp_path / 'out'}", *options]
    done = subprocess.run(
        [*command, sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def _count(package: str, code: str, tmp_path: Path, function: str) -> int:
    """Instructions inside a native function."""
    said = _run(package, code, tmp_path, "--collect-atstart=no", f"--toggle-collect={function}")
    (collected,) = re.findall(r"Collected : (\d+)", said)
    return int(collected)


def _count_between_marks(package: str, code: str, tmp_path: Path) -> int:
    """Instructions of the whole process between two marks: the imports are left out."""
    _run(package, code, tmp_path, "--dump-before=nf::runtime::set_num_threads*")
    (total,) = re.findall(r"^totals: (\d+)$", (tmp_path / "out.2").read_text(), re.MULTILINE)
    return int(total)


def _packages() -> tuple[str, str]:
    return str(Path(nf.__file__).parents[1]), str(Path(WITHOUT).resolve())


def test_matmul_of_32(tmp_path, record_property):
    """Inside the native call alone, Python's share left out."""
    having, without = (_count(package, MATMUL, tmp_path, "nf::ops::Matmul::run*") for package in _packages())
    assert without > 20 * 32**3 / 16, "the product was counted"
    share = (having - without) / without
    record_property("share", share)
    print(
        f"matmul of 32^3: {having / 20:.0f} instructions a call, {without / 20:.0f} without the profiler: {share:.3%}"
    )
    assert share < 0.01


def test_training_step(tmp_path, record_property):
    """Of the whole process: two steps after one."""
    having, without = (_count_between_marks(package, STEP, tmp_path) for package in _packages())
    assert without > 1e7
    share = (having - without) / without
    record_property("share", share)
    print(f"training step: {having / 2:.0f} instructions, {without / 2:.0f} without the profiler: {share:.4%}")
    assert share < 0.001
