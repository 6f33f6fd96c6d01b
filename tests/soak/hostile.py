"""Files and arguments that lie: a seed for each reader, made by code, and ways to alter them."""

from __future__ import annotations

import gzip
import inspect
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numformer as nf
import numpy as np
from numformer import data, files, models
from numformer.models.pretrained import INDEX, WEIGHTS, PretrainedModel
from numformer.optim import SGD
from numformer.train import load_checkpoint, save_checkpoint

Json = Any

HUGE = (2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 2**31, 2**40, -1, -(2**63), 0, 1, 3, 10**7)
ODD: tuple[Json, ...] = (
    *HUGE,
    *(1e308, float("inf"), float("-inf"), float("nan"), 1.5, True, None),
    *("", "x", "\0", "\ud800", "../x", "9" * 400),
    *([], {}, [[]], {"a": []}, [0] * 1000),
)


# ---------------------------------------------------------------- readers


def _models() -> dict[str, PretrainedModel]:
    """A small model of each kind."""
    small: dict[str, Any] = {"layers": 1, "heads": 2, "width": 8}
    pair: dict[str, Any] = {"vocab_size": 40, "context": 8, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}
    return {
        "gpt2": models.GPT(models.GPTConfig(vocab_size=11, context=8, **small), rng=0),
        "bert": models.BERT(models.BERTConfig(vocab_size=11, context=8, **small), rng=0),
        "roberta": models.RoBERTa(models.RoBERTaConfig(vocab_size=11, context=8, **small), rng=0),
        "longformer": models.Longformer(models.LongformerConfig(vocab_size=11, context=8, window=4, **small), rng=0),
        "transformer_xl": models.TransformerXL(models.TransformerXLConfig(vocab_size=11, **small), rng=0),
        "vit": models.ViT(models.ViTConfig(image=4, patch=2, labels=3, **small), rng=0),
        "paper": models.Transformer(models.TransformerConfig(width=8, **pair), rng=0),
        "marian": models.Transformer(models.TransformerConfig(width=8, style="marian", **pair), rng=0),
        "bart": models.Transformer(models.TransformerConfig(width=8, style="bart", **pair), rng=0),
    }


@cache
def scratch() -> Path:
    """The folder in which files lie."""
    folder = tempfile.TemporaryDirectory(prefix="numformer-hostile-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def _trained() -> tuple[Any, Any]:
    model = _models()["gpt2"]
    return model, SGD(model.parameters(), lr=0.1)


def _whole(path: Path) -> object:
    return files.read_tensors(path), files.read_tensors(path, mapped=True), files.read_metadata(path)


def _tokens(path: Path) -> object:
    file = data.TokenFile(path)
    file.verify()
    return [file[i] for i in range(min(len(file), 5))]


def _documents(path: Path) -> object:
    for split in ("line", "separator", "jsonl"):
        length = sum(len(text) for text, _ in data.read_documents([path], split=split))
    return length


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    # What is altered: the file that a reader is given, and the reader; folders of models stand beside them.
    "tensors": ("any.safetensors", _whole),
    "checkpoint": ("checkpoint.safetensors", lambda path: load_checkpoint(path, *_trained())),
    "token_file": ("any.tokens", _tokens),
    "pairs": ("pairs.tsv", data.read_pairs),
    "parallel": ("source.txt", lambda path: data.read_parallel(path, path, truncate=True)),
    "text": ("text.txt", lambda path: data.read_files([path])),
    "documents": ("documents.jsonl", _documents),
    "index": (f"sharded/{INDEX}", lambda path: models.from_pretrained(path.parent)),
    "weights": (f"weights/{WEIGHTS}", lambda path: models.from_pretrained(path.parent)),
}
if data.has_tokenizers():
    READERS |= {
        "language": ("language/tokenizer.json", data.read_vocabulary),
        "vocabulary": ("vocabulary/tokenizer.json", lambda path: data.load_vocabulary(path.parent)),
        "tokenizer": ("tokenizer/tokenizer.json", lambda path: data.Tokenizer.from_folder(path.parent)),
        "special_tokens": ("special/special_tokens_map.json", lambda path: data.Tokenizer.from_folder(path.parent)),
    }
CONFIGS = ("gpt2", "bert", "roberta", "longformer", "transformer_xl", "vit", "paper", "marian", "bart")
for _kind in CONFIGS:
    READERS[f"config_{_kind}"] = (f"{_kind}/config.json", lambda path: models.from_pretrained(path.parent))
# These name the file by its place in a folder; and a folder says which of its files is wrong.
_NAMES_FOLDER = ("index", "weights", *(f"config_{kind}" for kind in CONFIGS))


@cache
def seeds() -> dict[str, bytes]:
    """Write what the readers need beside the altered file; return a right content of that for each."""
    folder = scratch()
    for kind, model in _models().items():
        model.save_pretrained(folder / kind)
    gpt = _models()["gpt2"]
    gpt.save_pretrained(folder / "weights")
    gpt.save_pretrained(folder / "sharded")
    (folder / "sharded" / WEIGHTS).rename(folder / "sharded" / "part.safetensors")
    index = {"metadata": {}, "weight_map": {name: "part.safetensors" for name in gpt.state_dict()}}
    (folder / "sharded" / INDEX).write_text(json.dumps(index))
    save_checkpoint(folder / "checkpoint.safetensors", *_trained(), {"step": 3})
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((3, 4)).astype(np.float32), "b": np.arange(5), "c": np.ones((2, 0), np.float16)}
    files.write_tensors(folder / "any.safetensors", arrays, {"note": "x"})
    data.write_tokens(folder / "any.tokens", [np.arange(5), np.arange(3), np.arange(9)], vocab_size=300, end=1)
    lines = "".join(f"a {i}\tb {i}\n" for i in range(5))
    (folder / "pairs.tsv").write_text(lines)
    (folder / "source.txt").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (folder / "text.txt").write_text(lines)
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": f"say {i}"}) + "\n" for i in range(5)))
    if data.has_tokenizers():
        tokenizer = data.Tokenizer.train_byte_pairs(["a b c a b c"], 262)
        for name in ("tokenizer", "special"):
            tokenizer.save(folder / name)
        (folder / "special" / "special_tokens_map.json").write_text(json.dumps({"cls_token": "<s>", "sep_token": {}}))
        for name in ("vocabulary", "language"):
            (folder / name).mkdir()
            (folder / name / "tokenizer.json").write_text(data.BytePairVocabulary.train(["a b a b"], 262).to_json())
    return {reader: (folder / name).read_bytes() for reader, (name, _) in READERS.items()}


def read(reader: str, content: bytes) -> tuple[Callable[[], object], str]:
    """Return the call that reads this content, and what an error must name."""
    seeds()
    name, function = READERS[reader]
    path = scratch() / name
    path.write_bytes(content)
    return lambda: function(path), str(path.parent if reader in _NAMES_FOLDER else path)


def mend(reader: str) -> None:
    """Put the right content back: other readers may use the file."""
    (scratch() / READERS[reader][0]).write_bytes(seeds()[reader])


# ---------------------------------------------------------------- alterations


def _replaced(value: Json, path: tuple[Any, ...], new: Json) -> Json:
    """Return a copy in which what lies at the path is another value."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


def _paths(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _json(value: Json) -> bytes:
    return json.dumps(value).encode("utf-8", errors="surrogatepass")


def _with_header(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little", signed=False) + header + body


def _parts(content: bytes) -> tuple[Json, bytes]:
    """Header and body of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def is_safetensors(content: bytes) -> bool:
    """Whether it begins as such a file, so that its header can be altered as JSON."""
    try:
        return len(content) > 9 and isinstance(_parts(content)[0], dict)
    except (ValueError, RecursionError, OverflowError):
        return False


def altered(content: bytes, random_: random.Random) -> bytes:
    """Alter a file at random: a value of its JSON, or its bytes."""
    if random_.random() < 0.7:
        try:
            if is_safetensors(content):
                header, body = _parts(content)
                return _with_header(_odd(header, random_), body)
            return _odd(json.loads(content), random_)
        except (ValueError, RecursionError):  # no JSON, or after some alterations too deep for ours
            pass
    raw = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 8))):
        place = random_.randrange(len(raw) + 1)
        change = random_.randrange(4)
        if change == 0:
            raw[place : place + 1] = bytes([random_.randrange(256)])
        elif change == 1:
            del raw[place : place + random_.choice((1, 7, 100, 10**6))]
        elif change == 2:
            raw[place:place] = raw[: random_.choice((1, 8, 200))]
        else:
            raw[place : place + 8] = random_.choice(HUGE).to_bytes(16, "little", signed=True)[:8]
    return bytes(raw)


def _odd(value: Json, random_: random.Random) -> bytes:
    for _ in range(random_.choice((1, 1, 2))):
        path = random_.choice(list(_paths(value)))
        new: Json = random_.choice(ODD)
        if random_.random() < 0.1:  # deep
            for _ in range(random_.choice((10, 500))):
                new = [new]
        value = _replaced(value, path, new)
    text = _json(value)
    if random_.random() < 0.1:  # a key that comes twice
        text = text.replace(b"{", b'{"shape": [9], "vocab_size": 7, ', 1)
    return text


def hostile(reader: str) -> Iterator[tuple[str, bytes]]:
    """List files by hand, each with what is wrong with it."""
    right = seeds()[reader]
    yield "right", right
    yield "empty", b""
    yield "zeros", bytes(100)
    yield "binary", bytes(range(256)) * 4
    yield "deep", b"[" * 100_000
    yield "deep objects", b'{"a":' * 100_000
    yield "many digits", b"9" * 100_000
    yield "zip bomb", gzip.compress(bytes(60_000_000), 9, mtime=0)
    yield "half a surrogate", b'{"model_type": "\\ud800"}'
    yield "no UTF-8", b'{"a": "\xff"}'
    yield "not an object", b"[]"
    for share in (1, 2, 3):
        yield f"cut at {share} of 4", right[: len(right) * share // 4]
    if is_safetensors(right):
        yield from _lying(right)
        return
    try:
        fields = json.loads(right)
    except ValueError:
        return
    for path in _paths(fields):
        if reader in ("vocabulary", "language", "tokenizer") and len(path) > 2 and path[1] in ("vocab", "merges"):
            continue  # hundreds of entries alike
        for new in ODD if len(path) < 2 else ODD[::5]:
            yield f"{'/'.join(map(str, path))} = {new!r:.20}", _json(_replaced(fields, path, new))


def _lying(right: bytes) -> Iterator[tuple[str, bytes]]:
    header, body = _parts(right)
    text = _json(header)
    for length in (*(2**bit - 1 for bit in (24, 31, 32, 40, 62, 63, 64)), 2**63, 0, len(text) - 1, len(text) + 1):
        yield f"header of {length}", _with_header(text, body, length)
    tensor, *others = [name for name in header if name != "__metadata__"]
    for path in _paths(header):
        if path and path[0] in others[1:]:
            continue  # alike
        for new in ODD if len(path) < 3 else ODD[::5]:
            yield f"{'/'.join(map(str, path))} = {new!r:.20}", _with_header(_json(_replaced(header, path, new)), body)
    for offsets in ([0, 2**63], [2**63 - 8, 2**63], [8, 0], [0, len(body) + 1], [-8, 0]):
        lie = header[tensor] | {
            "data_offsets": offsets,
            "shape": [max(0, offsets[1] - offsets[0]) // 4],
            "dtype": "F32",
        }
        yield f"data at {offsets}", _with_header(_json(header | {tensor: lie}), body)
    for shape in ([2**32, 2**32], [2**63 - 1, 2], [0, 2**63 - 1], [2**62, 4, 0], [1] * 1000, [1] * 65):
        yield f"shape {shape!r:.30}", _with_header(_json(header | {tensor: header[tensor] | {"shape": shape}}), body)
    twice = header | {"another": header[tensor]}
    yield "two tensors in one place", _with_header(_json(twice), body)
    entry = json.dumps(header[tensor])
    yield "a name twice", _with_header(f'{{"a":{entry},"a":{entry}}}'.encode(), body)
    yield "a name that is long", _with_header(_json({"n" * 100_000: header[tensor]}), body)
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(5000)}
    yield "many tensors", _with_header(_json(many), b"")


# ---------------------------------------------------------------- arguments

_SCALARS: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 2**31, 2**63, 2**64, -(2**70), 1e308, float("nan"), float("inf"), 0.5),
    *("relu", "", "x", b"x", (), (1, 2), [], {}, object()),
)
_DTYPES = ("f4", "f8", "f2", "i4", "i8", "?", "u1", "c8", "S3", "O", ">f4", "M8[s]")
_NAMES = [name for name in nf.ops.__all__ if name not in ("from_dlpack", "to_dlpack")]


def _array(random_: random.Random) -> Any:
    shape = tuple(random_.choice((0, 1, 2, 3, 4, 7, 16)) for _ in range(random_.choice((0, 1, 1, 2, 2, 2, 3, 3, 4, 5))))
    dtype = np.dtype(random_.choice(_DTYPES[:1] * 12 + _DTYPES))
    array = np.zeros(shape, dtype)
    if dtype.kind in "fi":
        array += random_.choice((0, 1, 2))
        if dtype.kind == "f" and array.size and random_.random() < 0.2:
            array.flat[0] = random_.choice((np.nan, np.inf, -np.inf, 6e4))
    layout = random_.randrange(8)
    if layout == 0:
        array = array[..., ::-1] if array.ndim else array
    elif layout == 1:
        array = array.T
    elif layout == 2:
        array = np.broadcast_to(array, (random_.choice((0, 2, 3)), *array.shape))
    elif layout == 3:
        array.flags.writeable = False
    return array


def arguments(random_: random.Random) -> Callable[[], object]:
    """Return a call of a function with arguments of all kinds, mostly arrays of one shape or another."""
    name = random_.choice(_NAMES)
    function = getattr(nf.ops, name)
    some = [_array(random_) for _ in range(2)]
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = random_.random()
        if kind < 0.6:
            value = random_.choice(some)
        elif kind < 0.7:
            value = _array(random_)
        elif kind < 0.8:
            value = [random_.choice(some)]
        else:
            value = random_.choice(_SCALARS)
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty or random_.random() < 0.2:
                named[parameter.name] = random_.choice((value, random_.choice(_SCALARS)))
        elif parameter.default is parameter.empty or random_.random() < 0.3:
            positional.append(value)
        else:
            break
    return lambda: function(*positional, **named)
