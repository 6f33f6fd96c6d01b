"""``numformer profile`` and ``numformer bench``."""

from __future__ import annotations

import json
from pathlib import Path

import numformer as nf
import pytest
from numformer.cli import app, benchmarking
from numformer.profiling import ceilings
from typer.testing import CliRunner

RUN = CliRunner()

SCRIPT = """
import sys
import numpy as np, numformer as nf
from numformer import nn
import beside
assert __name__ == "__main__"
layer = nn.Linear(8, 8, rng=np.random.default_rng(0))
with nf.profile.range("mine"):
    layer.infer(np.ones((4, 8), np.float32))
print("arguments", sys.argv[1:], beside.VALUE)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick = ceilings.measure
    monkeypatch.setattr(ceilings, "measure", lambda *_: quick(0.0005, 1))
    monkeypatch.setattr(benchmarking, "_torch", lambda: None)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("VALUE = 'found'\n")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("code", [0, 3])
def test_profile_script(tmp_path: Path, script: Path, code: int) -> None:
    out, trace = tmp_path / "page.html", tmp_path / "trace.json"
    result = RUN.invoke(
        app, ["profile", "--out", str(out), "--trace", str(trace), str(script), "--flag", str(code), "--out", "its own"]
    )
    assert result.exit_code == code, result.output
    assert f"arguments ['--flag', '{code}', '--out', 'its own'] found" in result.output
    assert "matmul" in result.output and f"wrote {out}" in result.output
    assert "mine/Linear" in out.read_text(encoding="utf-8")
    assert any(event.get("name") == "matmul" for event in json.loads(trace.read_text())["traceEvents"])
    assert ceilings.load(nf.get_num_threads()) is not None, "ceilings are measured once"


def test_profile_train(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 40, encoding="utf-8")
    out = tmp_path / "page.html"
    command = ["train", str(text), "--out", str(tmp_path / "run"), "--layers", "1", "--heads", "2", "--width", "16"]
    result = RUN.invoke(
        app, ["profile", "--out", str(out), *command, "--context", "16", "--batch", "4", "--steps", "5", "--quiet"]
    )
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    for layer in ("Trainer.gradient/GPT/blocks.0/mlp/inner", "AdamW.step", "Trainer.evaluate/GPT"):
        assert layer in page


def test_profile_mistakes(tmp_path: Path, script: Path) -> None:
    result = RUN.invoke(app, ["profile", str(tmp_path / "missing.py")])
    assert result.exit_code == 2 and "no file, and no command" in result.output
    result = RUN.invoke(app, ["profile", "--out", str(tmp_path / "no" / "page.html"), str(script)])
    assert result.exit_code == 2 and "not a folder" in result.output


def test_profile_of_a_script_that_raises(tmp_path: Path) -> None:
    script, out = tmp_path / "bad.py", tmp_path / "page.html"
    script.write_text("import numpy as np, numformer as nf\nnf.relu(np.ones(3))\nraise ArithmeticError('mine')\n")
    result = RUN.invoke(app, ["profile", "--out", str(out), str(script)])
    assert isinstance(result.exception, ArithmeticError) and out.is_file()


def test_bench(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["bench", "--quick", "matmul", "softmax", "gelu", "layer_norm", "attention"])
    assert result.exit_code == 0, result.output
    for case in ("matmul 64 x 64 x 64", "softmax 64 x 64", "attention 1, 2, 32, 16 causal", "gelu", "x numpy"):
        assert case in result.output
    assert "matmul 64 x 64 x 64, numpy " in result.output and "faster than (right)" in result.output
    result = RUN.invoke(app, ["bench", "teleport"])
    assert result.exit_code == 2 and "must be among matmul, attention" in result.output


def test_bench_bars() -> None:
    fast, even, slow = ({"numformer": 1.0, "numpy": ratio} for ratio in (4.0, 1.0, 0.5))
    lines = benchmarking._bars([("fast", fast | {"torch": 2.0}), ("even", even), ("slow", slow)]).splitlines()[1:]
    halves = [line.split("|") for line in lines]
    assert [(left.count("#"), right.count("#")) for left, right in halves] == [(0, 16), (0, 8), (0, 0), (8, 0)]
    assert len({len(left) for left, _ in halves}) == 1, "what is as fast stands in one column"
    assert lines[1].startswith("fast, torch") and [line.split()[-1] for line in lines] == [
        "4.00",
        "2.00",
        "1.00",
        "0.50",
    ]


def test_bench_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = RUN.invoke(app, ["bench", "--quick", "softmax", "--picture", str(tmp_path / "bench.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_bench_ceilings() -> None:
    before = nf.get_num_threads()
    result = RUN.invoke(app, ["bench", "--ceilings", "--quick"])
    assert result.exit_code == 0, result.output
    assert nf.get_num_threads() == before
    assert "fork and join" in result.output and str(ceilings.path()) in result.output.replace("\n", "")
    assert ceilings.load(1) is not None and ceilings.load(before) is not None


def test_explain() -> None:
    result = RUN.invoke(app, ["explain", "attention", "--shape", "4,12,1024,64", "--causal"])
    assert result.exit_code == 0, result.output
    assert "attention (4, 12, 1024, 1024, 64, 64) float32" in result.output and nf.info()["isa"] in result.output
    pairs = 4 * 12 * (1024 * 1025 // 2)
    assert f"{4.0 * pairs * 64:.4g} FLOPs" in result.output
    for text in ("tile rows", "block keys", "threads", "% of all pairs", "us at least, bound by arithmetic"):
        assert text in result.output
    assert ceilings.load(nf.get_num_threads()) is not None, "ceilings are measured once"
    command = ["explain", "attention", "--shape", "8,1,64", "--keys", "5000", "--kv-heads", "2", "--window", "100,"]
    result = RUN.invoke(app, [*command, "--dtype", "bfloat16"])
    assert result.exit_code == 0, result.output
    assert "few queries" in result.output and f"{4.0 * 8 * 101 * 64:.4g} FLOPs" in result.output
    result = RUN.invoke(app, ["explain", "attention", "--shape", "2,50,8", "--backward", "--dtype", "float64"])
    assert result.exit_code == 0 and "attention_backward (1, 2, 50, 50, 8, 8) float64" in result.output
    result = RUN.invoke(app, ["explain", "matmul", "--shape", "512,768,2304", "--transpose-a", "--dtype", "float16"])
    assert result.exit_code == 0 and "from its transpose" in result.output
    result = RUN.invoke(app, ["explain", "matmul", "--shape", "64,32,16", "--backward"])
    assert result.exit_code == 0 and result.output.count("kernel  matmul") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["matmul", "--shape", "512,768"], "--shape must be M,K,N"),
        (["matmul", "--shape", "a,b,c"], "--shape must be M,K,N"),
        (["matmul", "--shape", "8,-8,8"], "numbers of 0 or more"),
        (["matmul", "--shape", "8,8,8", "--causal"], "--causal is for attention only"),
        (["attention", "--shape", "8,8,8", "--transpose-b"], "--transpose-b is for matmul only"),
        (["attention", "--shape", "8,8,8", "--window", "3"], "--window must be LEFT,RIGHT"),
        (["attention", "--shape", "8,8,8", "--kv-heads", "3"], "number of heads that divides q's"),
        (["matmul", "--shape", "99999999999,99999999999,8"], "must fit in memory"),
    ],
)
def test_explain_mistakes(options: list[str], message: str) -> None:
    result = RUN.invoke(app, ["explain", *options])
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
