"""Command line: ``python -m benchmarks SUBJECT... [--threads 1 2] [--model gpt] [--dtype bfloat16] [--out FOLDER]``."""

import argparse
import importlib
import os
import pathlib
import sys
from typing import Any

SUBJECTS = (
    "matmul",
    "attention",
    "training_step",
    "training_memory",
    "nanogpt",
    "multi30k",
    "profiler",
    "models",
    "mixed_precision",
    "mpi",
    "cuda",
)
# Which file measures the training step of a model.
MODELS = {"gpt": "training_step", "transformer": "transformer_step"}
# Which of them know mixed precision.
TYPED = ("attention", "training_step", "training_memory")
# Which of them can do a part and keep what was measured of the others.
PARTED = ("matmul", "models", "training_step")
PARTS_HELP = "of models: some of its parts; of matmul, training_step: beginnings of cases; added to what the file has"
DTYPE_HELP = "of attention; of training_step of a gpt and of training_memory, against autocast in the same dtype"


def main() -> int:
    """Run the subjects one after the other."""
    # A forced OpenBLAS kernel would slow NumPy down: a peer runs at its best setting. Read at its import, so start
    # again without.
    forced = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ]
    if forced:
        for name in forced:
            del os.environ[name]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="+", choices=SUBJECTS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--model", choices=MODELS, default="gpt", help="of training_step")
    parser.add_argument("--parts", nargs="+", help=PARTS_HELP)
    parser.add_argument("--rounds", type=int, default=3, help="of models: samples of each side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help=DTYPE_HELP)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results")
    options = parser.parse_args()
    for subject in options.subjects:
        name = MODELS[options.model] if subject == "training_step" else subject
        if options.dtype != "float32" and name not in TYPED:
            parser.error(f"{name} has no --dtype {options.dtype}")
        more: dict[str, Any] = {"dtype": options.dtype} if name in TYPED else {}
        if name in PARTED:
            more["parts"] = options.parts
        if name == "models":
            more["rounds"] = options.rounds
        path = importlib.import_module(f"benchmarks.{name}").run(options.threads, options.out, **more)
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
