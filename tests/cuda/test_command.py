"""`numformer train --device cuda`."""

import csv

import cuda_host
import gpu
import gpu_twin
import numpy as np
import pytest
from numformer.cli import app
from typer.testing import CliRunner

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")

RUN = CliRunner()
TINY = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "4", "--quiet"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 40)
    return path


def losses(folder):
    with open(folder / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("model", ["gpt", "transformer-xl"])
def test_a_run_on_the_device_is_that_on_the_cpu(text, tmp_path, model):
    with gpu.standing_in(gpu_twin.core):
        for device in ("cpu", "cuda"):
            out = ["--model", model, "--out", str(tmp_path / device), "--device", device, "--sample-every", "6"]
            result = RUN.invoke(app, ["train", str(text), "--steps", "12", "--eval-every", "5", *out, *TINY])
            assert result.exit_code == 0, result.output
            assert "validation loss" in result.output
        assert gpu.TRUE or "activation_backward" in gpu_twin.calls
        np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=1e-4)
        resumed = ["--model", model, "--steps", "14", "--resume", "--device", "cuda", "--out", str(tmp_path / "cpu")]
        result = RUN.invoke(app, ["train", str(text), *resumed, *TINY])
        assert result.exit_code == 0, result.output
        dry = RUN.invoke(app, ["train", str(text), "--dry-run", "--device", "cuda", *TINY])
        assert dry.exit_code == 0, dry.output


def test_a_transformer(tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"ein {word}\ta {word}\n" for word in ("Hund", "Mann", "Haus", "Baum") * 10))
    tiny = ["--layers", "1", "--heads", "2", "--width", "16", "--batch", "8", "--vocab", "0", "--quiet"]
    with gpu.standing_in(gpu_twin.core):
        for device in ("cpu", "cuda"):
            out = ["--out", str(tmp_path / device), "--device", device, "--steps", "11", "--pairs", str(pairs)]
            result = RUN.invoke(app, ["train", "--model", "transformer", *out, *tiny])
            assert result.exit_code == 0, result.output
    np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=1e-4)


@cuda_host.stand_in
def test_what_cannot_be(text):
    with gpu.standing_in(gpu_twin.core, version=11080):
        old = RUN.invoke(app, ["train", str(text), "--device", "cuda", "--dry-run", *TINY])
    assert old.exit_code != 0
    assert "driver is too old" in " ".join(old.output.split())
