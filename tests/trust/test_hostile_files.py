"""What fuzzing sets out from, and what random changes make of it: an error within a second and 100 MB, or an answer.

``python -m tests.soak`` goes on from here, guided by coverage.
"""

import gzip
import json
import os
import sys

import numpy as np
import pytest
from numformer.data import read_lines
from processes import answer

if sys.platform != "linux":
    pytest.skip("the bounds are those of Linux", allow_module_level=True)

from soak.targets import TARGETS, bounded, folder, seeds

CHANGES = int(os.environ.get("NUMFORMER_SOAK_CHANGES", "60"))


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target):
    for data in seeds(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_random_changes(rng, target):
    """Bytes altered, cut out, doubled, and the ends cut off."""
    known = seeds(target)
    for _ in range(CHANGES):
        data = bytearray(known[rng.integers(len(known))][:4096])
        for _ in range(rng.integers(1, 6)):
            if not data:
                break
            at, other = (int(i) for i in rng.integers(0, len(data), 2))
            kind = rng.integers(5)
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                data[at : at + 8] = (2 ** int(rng.integers(20, 64)) - 1).to_bytes(8, "little")
            elif kind == 2:
                del data[min(at, other) : max(at, other)]
            elif kind == 3:
                data[at:at] = data[min(at, other) : max(at, other)]
            else:
                data[at] = int(rng.choice(list(b'0123456789{}[],:"-.e')))
        TARGETS[target](bytes(data))


def test_zip_bombs():
    """A file that grows a thousandfold is refused while it grows."""
    path = folder() / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(300 * 2**20), 9))
    assert path.stat().st_size < 2**20
    with bounded("a bomb"), pytest.raises(ValueError, match="grows"):
        read_lines(path)
    text = b"a\tb\n" * 100_000
    path.write_bytes(gzip.compress(text))
    assert len(read_lines(path)) == 100_000


def test_a_configuration_cannot_ask_for_more_than_its_weights():
    """Sizes of a config.json are compared with the file beside it before memory is asked for."""
    code = """
        import json, resource, sys, time
        from pathlib import Path
        import numpy as np
        from numformer import files
        from numformer.models import GPT, GPTConfig
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else %r)
        fields = GPTConfig(vocab_size=5, context=4, layers=1, heads=1, width=2).to_json()
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_inner"):
            for value in (10**5, 10**9, 2**62):
                (folder / "config.json").write_text(json.dumps({**fields, name: value}))
                start = time.perf_counter()
                try:
                    GPT.from_pretrained(folder)
                except ValueError as error:
                    assert time.perf_counter() - start < 1, (name, value)
                else:
                    raise AssertionError((name, value))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 400_000)
    """
    place = folder() / "lying"
    place.mkdir(exist_ok=True)
    from numformer import files

    files.write_tensors(place / "model.safetensors", {"a": np.zeros(4, np.float32)}, {})
    assert answer(code % str(place)) == "True"
    assert json.loads((place / "config.json").read_text())
