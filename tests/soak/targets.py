"""What is fuzzed: each target takes bytes, hands them to a reader or to argument checks, and allows the errors that
these promise. Anything else is a finding: another error, a crash, more than a second, more than 100 MB.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import resource
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
from numformer import files
from numformer.data import load_vocabulary, read_pairs, read_parallel
from numformer.models import (
    BERT,
    GPT,
    BERTConfig,
    GPTConfig,
    Longformer,
    RoBERTa,
    Transformer,
    TransformerConfig,
    ViT,
)
from numformer.optim import AdamW
from numformer.train.checkpoint import load_checkpoint, save_checkpoint

SECONDS = 1.0
MEMORY = 100 * 2**20
PROMISED = (ValueError, TypeError, FileNotFoundError)
MODELS: tuple[Any, ...] = (GPT, BERT, RoBERTa, Longformer, ViT, Transformer)

Target = Callable[[bytes], None]


class Finding(Exception):
    """Something that was not promised."""


@functools.cache
def folder() -> Path:
    """Where the files of this process lie; in memory where there is such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix=f"numformer-fuzz-{os.getpid()}-", dir=memory if memory.is_dir() else None))


@contextlib.contextmanager
def bounded(what: str) -> Iterator[None]:
    """Allow the errors that are promised, a second, and 100 MB of address space."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    start = time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    try:
        yield
    except PROMISED:
        pass
    except MemoryError as error:
        raise Finding(f"{what}: asked for more than {MEMORY >> 20} MB") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    taken = time.perf_counter() - start
    if taken > SECONDS:
        raise Finding(f"{what}: took {taken:.1f} s")


def _write(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def tensors(data: bytes) -> None:
    """A safetensors file: `data`, or a header that is `data` with a length that fits."""
    variants = (data, struct.pack("<Q", len(data)) + data + bytes(64), struct.pack("<Q", 2**63 - 1 - len(data)) + data)
    for variant in variants:
        path = _write("weights.safetensors", variant)
        for options in ({}, {"mapped": True}, {"sealed": True}):
            with bounded(f"read_tensors({options})"):
                files.read_tensors(path, **options)
        with bounded("read_metadata"):
            files.read_metadata(path)


def config(data: bytes) -> None:
    """A config.json, read by every model, beside weights that fit none."""
    path = _write("model/config.json", data)
    weights = path.with_name("model.safetensors")
    if not weights.exists():
        files.write_tensors(weights, {"a": np.zeros(4, np.float32)}, {})
    for model in MODELS:
        with bounded(f"{model.__name__}.from_pretrained"):
            model.from_pretrained(path.parent)


def index(data: bytes) -> None:
    """A list of shards."""
    path = _write("shards/model.safetensors.index.json", data)
    if not (config_path := path.with_name("config.json")).exists():
        config_path.write_text(json.dumps(GPTConfig(vocab_size=5, context=4, layers=1, heads=1, width=2).to_json()))
        files.write_tensors(path.with_name("a.safetensors"), {"a": np.zeros(4, np.float32)}, {})
    with bounded("from_pretrained with an index"):
        GPT.from_pretrained(path.parent)


def vocabulary(data: bytes) -> None:
    """A tokenizer.json that is not the library's; with it, the library's own reader is what is tested."""
    path = _write("vocabulary/tokenizer.json", data)
    with bounded("load_vocabulary"), contextlib.suppress(ImportError):
        load_vocabulary(path.parent)


def pairs(data: bytes) -> None:
    """Pairs in one file and in two, plain and compressed."""
    one, other = _write("pairs.tsv", data), _write("other.txt", data[: len(data) // 2])
    packed = _write("packed.gz", gzip.compress(data, 1))
    broken = _write("broken.gz", b"\x1f\x8b" + data)
    for path in (one, packed, broken):
        for on_bad in ("skip", "error"):
            with bounded("read_pairs"):
                read_pairs(path, on_bad=on_bad)
    for truncate in (False, True):
        with bounded("read_parallel"):
            read_parallel(one, other, truncate=truncate)


@functools.cache
def _trained() -> tuple[Any, Any]:
    model = GPT(GPTConfig(vocab_size=7, context=4, layers=1, heads=1, width=4), rng=0)
    return model, AdamW(model.parameters())


def checkpoint(data: bytes) -> None:
    """A checkpoint, and one whose notes are `data` with a checksum that fits."""
    model, optimizer = _trained()
    path = _write("checkpoint.safetensors", data)
    with bounded("load_checkpoint"):
        load_checkpoint(path, model, optimizer)
    path = folder() / "notes.safetensors"
    state = {f"model/{name}": value for name, value in model.state_dict().items()}
    state |= {f"optimizer/{name}": value for name, value in optimizer.state_dict().items()}
    files.write_tensors(path, state, {"numformer": data.decode("utf-8", "replace")})
    with bounded("load_checkpoint"):
        load_checkpoint(path, model, optimizer)


class _Bytes:
    """Choices out of bytes; 0 when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def of(self, items: Any) -> Any:
        return items[self.byte() % len(items)]


NUMBERS = (
    0,
    1,
    2,
    3,
    -1,
    7,
    2**31,
    2**63 - 1,
    -(2**63),
    2**64,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    None,
    "x",
    True,
)
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.bool_, np.uint8, np.complex64)


def _array(b: _Bytes) -> Any:
    shape = tuple(b.byte() % 5 for _ in range(b.byte() % 5))
    x = np.ones(shape, b.of(DTYPES))
    how = b.byte() % 12
    if how == 0:
        return x.T
    if how == 1 and x.ndim:
        return x[..., ::-1]
    if how == 2:
        return np.broadcast_to(x, (3, *x.shape))
    if how == 3:
        return np.broadcast_to(x, (2**40, *x.shape))  # as large as memory never is
    if how == 4:
        return x.tolist()
    if how == 5:
        return x.astype(x.dtype.newbyteorder())
    if how == 6:
        return b.of(NUMBERS)
    if how == 7:
        x.flags.writeable = False
    return x


def _value(b: _Bytes, depth: int = 0) -> Any:
    how = b.byte() % 10
    if how < 4:
        return b.of(NUMBERS)
    if how < 7 or depth > 2:
        return _array(b)
    if how == 7:
        return b.of(("gelu", "none", "mean", "sum", "bottom_right", "top_left", "", "float16"))
    items = [_value(b, depth + 1) for _ in range(b.byte() % 5)]
    return tuple(items) if how == 8 else items


OPERATIONS = tuple(sorted(set(nf.ops.__all__) - {"to_dlpack"}))
OPTIONS = (
    "causal", "window", "mask", "bias", "scale", "softcap", "alibi_slopes", "sinks", "global_tokens", "rel", "dropout",
    "seed", "return_lse", "out", "activation", "residual", "accumulate", "dtype", "axis", "eps", "reduction",
    "label_smoothing", "ignore_index", "chunk", "lr", "step", "momentum", "approximate", "dlse", "grads", "into",
    "cu_seqlens", "sample", "dweight",
)  # fmt: skip


def arguments(data: bytes) -> None:
    """Calls of every operation with arguments that mostly make no sense."""
    b = _Bytes(data)
    operation = getattr(nf, b.of(OPERATIONS))
    args = [_array(b) if b.byte() % 8 else _value(b) for _ in range(b.byte() % 6)]
    options = {b.of(OPTIONS): _value(b) for _ in range(b.byte() % 4)}
    with warnings.catch_warnings(), bounded(operation.__name__):
        warnings.simplefilter("ignore")
        try:
            operation(*args, **options)
        except MemoryError:
            if not any(getattr(x, "size", 0) > 2**38 for x in (*args, *options.values())):
                raise


TARGETS: dict[str, Target] = {
    "tensors": tensors,
    "config": config,
    "index": index,
    "vocabulary": vocabulary,
    "pairs": pairs,
    "checkpoint": checkpoint,
    "arguments": arguments,
}


def seeds(target: str) -> list[bytes]:
    """Files that are right, from which fuzzing sets out, and a few that once were trouble."""
    place = folder() / "seeds"
    place.mkdir(exist_ok=True)
    deep = b"[" * 100_000
    if target == "tensors":
        path = place / "a.safetensors"
        files.write_tensors(path, {"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.int64)}, {"k": "v"})
        data = path.read_bytes()
        one = '"%s":{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}'
        overlap = ("{" + one % ("a", 0, 8) + "," + one % ("b", 4, 12) + "}").encode()
        huge = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
        return [data, data[8:], overlap, huge, deep, b""]
    if target in ("config", "index"):
        kinds: list[Any] = [GPTConfig(vocab_size=5, context=4, layers=1, heads=1, width=2)]
        kinds += [BERTConfig(vocab_size=5, context=4, layers=1, heads=1, width=2)]
        kinds += [TransformerConfig(vocab_size=5, width=4, heads=1, layers=1, context=4)]
        fields = [kind.to_json() for kind in kinds]
        lies = [{**one, name: value} for one in fields for name in one if isinstance(one[name], int)
                for value in (2**31, 2**62, 10**9, -1)]  # fmt: skip
        lists = [{"weight_map": {"a": "a.safetensors"}}, {"weight_map": {"a": "../a.safetensors"}}, {"weight_map": []}]
        return [json.dumps(one).encode() for one in (*fields, *lies, *lists)] + [deep, b'{"a":' * 50_000, b"9" * 9999]
    if target == "vocabulary":
        plain = b'{"type": "bytes", "special": ["<pad>", "<s>", "</s>"]}'
        bpe = b'{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}'
        return [plain, bpe, deep, b"{}"]
    if target == "pairs":
        return [b"ein Hund\ta dog\neine Katze\ta cat\n", b"a\tb\tc\n\xff\xfe\n\r\n", bytes(200_000), b""]
    if target == "checkpoint":
        model, optimizer = _trained()
        path = place / "checkpoint.safetensors"
        save_checkpoint(path, model, optimizer, {"step": 3})
        return [path.read_bytes(), b'{"optimizer": "AdamW", "progress": {"step": 1}}', deep]
    rng = np.random.default_rng(0)
    return [bytes([i, 3, *rng.integers(0, 256, 60).tolist()]) for i in range(2 * len(OPERATIONS))]
