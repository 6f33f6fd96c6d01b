"""Files and arguments that lie end in a clear error, soon and within little memory; the long version is tests/soak."""

import json
import sys
import time

import numformer as nf
import numpy as np
import pytest
from numformer import models
from soak import rounds
from soak.judge import Figures, judge

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set by Linux's means")

LISTED = """
    from soak import fuzz
    from soak.judge import Figures
    figures = Figures()
    for line in fuzz.listed(figures, most=20):
        print(line)
    fuzz.plain(2, 0, figures)
    assert figures.inputs > 200 and figures.errors > 100
"""


@pytest.mark.skipif(nf.info()["isa"] != nf.info()["isa_available"][-1], reason="readers know no instruction set")
def test_files_and_arguments():
    """In a process of its own: a crash is noticed, and the limits harm no other test."""
    done = rounds.in_child(LISTED)
    assert done.returncode == 0 and not done.stdout, done.stdout[-5000:] + done.stderr[-5000:]


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: {}["x"], "no clear error, KeyError"),
        (lambda: bytearray(200 << 20), "no clear error, MemoryError"),
        (lambda: int("x"), "the error must name FILE"),
        (lambda: busy(1.05), "it took"),
    ],
)
def test_the_judge_notices(call, words):
    with pytest.raises(AssertionError, match=words):
        judge(call, "FILE", Figures())


def test_a_context_that_no_weight_bounds(tmp_path):
    """Sines are in no file: a configuration may say any length, and gets rows for what is read."""
    config = models.TransformerConfig(vocab_size=20, encoder_layers=1, decoder_layers=1, heads=2, width=8, context=16)
    model = models.Transformer(config, rng=0)
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"context": 2**40}))
    long = models.Transformer.from_pretrained(tmp_path)
    source, target = np.array([[5, 6, 7, 2]]), np.array([[1, 9, 8]])
    np.testing.assert_array_equal(long.infer(source, target), model.infer(source, target))
    assert long.config.context == 2**40


@pytest.mark.skipif(not rounds.GUIDED, reason="atheris is not installed")
def test_guided_fuzzing_runs():
    # On a machine that others keep busy the first input may take longer than the time that is given.
    assert any(rounds.fuzz(seconds, 1)["inputs"] > 0 for seconds in (2, 20, 120))
