"""`python -m benchmarks cuda` and `tools/gpu-check` as far as they go without a GPU."""

import json
import os
import re
import subprocess
import sys

import gpu
import gpu_twin
import pytest
from numformer.models import GPTConfig
from processes import answer

pytestmark = pytest.mark.skipif(
    not (gpu.ROOT / "benchmarks").is_dir() or gpu.TRUE, reason="an installed package, or a true GPU"
)


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.syspath_prepend(str(gpu.ROOT))
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    from benchmarks import cuda

    for name, value in {
        "MATRIX": 8,
        "COPIED": 64,
        "ATTENTION": [(1, 2, 4, 8)],
        "PARAMETERS": 10,
        "ROWS": (3, 8),
        "GPT2": GPTConfig(vocab_size=17, context=8, layers=1, heads=2, width=8),
        "BATCH": 2,
        "ROUNDS": 1,
    }.items():
        monkeypatch.setattr(cuda, name, value)
    return cuda


def test_all_of_it_is_measured_and_written(cuda, tmp_path, capsys):
    with gpu.standing_in(gpu_twin.core):
        path = cuda.run([1], tmp_path)
    found = json.loads(path.read_text())
    cases = [row["case"].split()[0] for row in found["results"]]
    assert cases == ["matmul", "copy", *["attention"] * 4, "AdamW,", *["layer"] * 4, "GPT-2"]
    assert all(row["seconds"]["numformer"] > 0 for row in found["results"])
    assert set(found["ceilings"]) == {"TFLOP/s", "GB/s"} and min(found["ceilings"].values()) > 0
    assert found["machine"]["device"] == "Stand-in" and found["machine"]["torch"] is None
    assert capsys.readouterr().out.count("TFLOP/s") == 6


def test_without_a_gpu_it_says_so(cuda, tmp_path):
    with (
        gpu.standing_in(gpu_twin.core, devices=0),
        pytest.raises(SystemExit, match=r"cuda: there is no GPU to measure: .*no NVIDIA GPU"),
    ):
        cuda.run([1], tmp_path)


def test_the_check_of_a_machine_ends_where_there_is_no_gpu(tmp_path):
    if answer("import numformer; print(numformer.info()['cuda']['usable'])") == "True":
        pytest.skip("there is a GPU")
    check = [gpu.ROOT / "tools" / "gpu-check", tmp_path, "--installed"]
    done = subprocess.run(
        check,
        env={**os.environ, "PYTHON": sys.executable},  # numformer may be installed or beside its sources
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (tmp_path / "summary.txt").read_text().startswith("device: failed (1)")
    assert "'usable': False" in (tmp_path / "device.log").read_text()
    usage = subprocess.run(check[:1], capture_output=True, text=True, check=False)
    assert usage.returncode == 2 and "tools/gpu-check FOLDER --installed" in usage.stderr


def test_the_check_goes_through_all_its_steps(tmp_path):
    """With commands in place of Python and compute-sanitizer that write down their arguments; one of them fails."""
    for name in ("python", "compute-sanitizer"):
        command = tmp_path / name
        command.write_text(
            '#!/bin/sh\nprintf "[%s] " "$0" "$@"\necho "$NUMFORMER_TEST_GPU"\ncase "$*" in *racecheck*) exit 9;; esac\n'
        )
        command.chmod(0o755)
    out = tmp_path / "out"
    environment = {"PYTHON": str(tmp_path / "python"), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    check = [gpu.ROOT / "tools" / "gpu-check", out, "--installed"]
    done = subprocess.run(check, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    steps = [line.split(":")[0] for line in (out / "summary.txt").read_text().splitlines()]
    assert steps == ["device", "kernels", "functions", "models", "device_errors", "memcheck", "racecheck", "benchmark"]
    verdicts = [line.split(": ")[1].split(",")[0] for line in (out / "summary.txt").read_text().splitlines()]
    assert verdicts == ["passed"] * 6 + ["failed (9)", "passed"]
    said = (out / "memcheck.log").read_text()
    assert (
        "[--tool] [memcheck]" in said and "[test_layer and float32 and (attention or feed-forward or norm)] 1" in said
    )
    named = [word for step in steps for word in re.findall(r"\[(.*?)\]", (out / f"{step}.log").read_text())]
    files = [word for word in named if word.startswith("tests/")]
    assert len(files) > 8 and all((gpu.ROOT / name.split("::")[0]).is_file() for name in files)
    assert "[benchmarks] [cuda] [--out]" in (out / "benchmark.log").read_text()
