"""Folders in Hugging Face's format: config.json, and model.safetensors in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import files
from numformer.nn import Embedding, Module, initial
from numformer.nn.context import compute_dtype
from numformer.ops.memory import on_host

Array = NDArray[Any]

_SPARE = 2**14
_MOST = 2**53  # of a number in config.json: whole ones beyond it are no floats, and index nothing
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


class Config(Protocol):
    """What a model is made of."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of config.json."""
        ...


class PretrainedModel(Module):
    """A model that is read from and written to a folder.

    A model has a `config`, is made by ``Model(config, rng=...)``, and says here how the files of others differ from its
    own: `adapt` brings their names to those of its state dict.
    """

    config: Any
    config_type: ClassVar[Any]
    tied: ClassVar[Mapping[str, str]] = {}
    """Names that files hold besides, as copies of others."""

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into a folder that Hugging Face's Transformers loads."""
        fields = self.config.to_json()
        narrow = [p.value.dtype.name for p in self.parameters() if p.value.dtype.itemsize == 2]
        if narrow and "torch_dtype" in fields:
            fields["torch_dtype"] = narrow[0]
        save(fields, self.stored(), Path(path))

    @classmethod
    def from_pretrained(cls, path: str | Path, *, dtype: DTypeLike | None = None) -> Self:
        """Read a folder with config.json and model.safetensors, or its shards.

        Weights that the file holds as the model computes with them are read from the file itself, which is mapped into
        memory: they are read-only until an optimizer takes them, or ``load_state_dict`` writes others.

        Parameters
        ----------
        path : path
            Of the folder.
        dtype : dtype, optional
            Of the weights: "float32" or "float64", to train as well; "bfloat16" to use the model only: half the memory,
            activations in bfloat16 too, logits, softmax and the statistics of norms in float32; "int8" to use it only
            as well: a quarter to read for each token, activations in float32. Both are packed, see :meth:`Module.pack`.
            By default that of the file where it is float64, else float32.

        Raises
        ------
        TypeError
            For another dtype.
        FileNotFoundError
            Where the folder or one of these files is not there.
        ValueError
            Where the configuration is that of another model, or weights are missing, unknown or of a wrong shape; they
            are named.
        """
        folder = Path(path)
        if _is_int8(dtype):
            model = cls.from_pretrained(folder, dtype=np.float32)
            model.pack(np.int8)
            return model
        if dtype is not None:
            weights_dtype(dtype)
        fields = read_config(folder)
        try:
            cls.config_type.from_json(fields)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error
        state = read_weights(folder)
        # Room for what is made and not in the files: copies of tied weights, parts that a file leaves out.
        most = _SPARE + 4 * sum(value.size for value in state.values())
        try:
            model = cls._empty_of(fields, dtype, most)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error
        try:
            model.load_state_dict(untied(floats(model.adapt(state)), model.tied), adopt=True)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder}: {error}") from error
        if dtype is not None and weights_dtype(dtype).itemsize == 2:
            model.pack()
            tables = {id(module.weight) for _, module in model.modules() if isinstance(module, Embedding)}
            for parameter in model.parameters():
                if id(parameter) not in tables:  # of which single rows are read
                    parameter.release()
        return model

    @classmethod
    def _empty_of(cls, fields: dict[str, Any], dtype: DTypeLike | None, most: int) -> Self:
        """Make the empty model with matrices of a dtype; beside 16 bits vectors, which are few, are float32."""
        if dtype is None:
            return cls.empty(fields, most)
        kind = weights_dtype(dtype)
        # Older files say torch_dtype, newer ones dtype.
        key = "dtype" if "dtype" in fields and "torch_dtype" not in fields else "torch_dtype"
        model = cls.empty(fields | {key: "float32" if kind.itemsize == 2 else kind.name}, most)
        if kind.itemsize > 2:
            return model
        for parameter in model.parameters():
            if parameter.value.ndim > 1:
                parameter.value = np.empty(parameter.value.shape, kind)
        return model

    @classmethod
    def empty(cls, fields: dict[str, Any], most: int | None = None) -> Self:
        """Make the model that config.json describes, with weights of zero, `most` of them; ValueError for more."""
        model: Self = cls(cls.config_type.from_json(fields), rng=initial.Zeros(most))  # type: ignore[call-arg]
        return model

    def adapt(self, state: dict[str, Array]) -> dict[str, Array]:
        """Bring the names that files come with to those of this model."""
        return state

    def stored(self) -> dict[str, Array]:
        """Return what model.safetensors holds: the state dict, and what readers expect besides."""
        return self.state_dict()


def _is_int8(dtype: DTypeLike | None) -> bool:
    try:
        return dtype is not None and np.dtype(dtype) == np.int8
    except TypeError:  # no dtype that NumPy knows by itself
        return False


def weights_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype of weights that is meant; TypeError for one that they cannot have."""
    kind = compute_dtype("from_pretrained", dtype)
    if kind == np.float16:
        raise TypeError(
            "from_pretrained: dtype must be float32, float64 or bfloat16 (float16 has no room), got float16"
        )
    return kind


def save(config: dict[str, Any], state: Mapping[str, Array], folder: Path) -> None:
    """Write a model; each file is complete or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / WEIGHTS, {name: on_host(value) for name, value in state.items()}, {"format": "pt"})
    files.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so this is not the folder of a model")
    fields = _json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: must hold an object, got {type(fields).__name__}")
    for name, value in fields.items():
        if isinstance(value, int) and abs(value) >= _MOST:
            raise ValueError(f"{path}: {name} must be below {_MOST}, got {value}")
    return fields


def read_weights(folder: Path) -> dict[str, Array]:
    """Read model.safetensors, or the shards that model.safetensors.index.json lists."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
            raise ValueError(
                f"{folder / PICKLE}: a pickle can run any code, so it is not read; convert it where you trust it: "
                "transformers' AutoModel.from_pretrained(FOLDER).save_pretrained(NEW), with the class that config.json "
                "names for AutoModel, writes model.safetensors"
            )
        return files.read_tensors(folder / WEIGHTS, mapped=True)[0]
    fields = _json(index)
    places = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map must be an object of names and files, got {places!r}")
    for name, file in places.items():
        # A file of this folder and no other: no separator, no drive, not "..".
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file or "\\" in file:
            raise ValueError(f"{index}: {name} must be in a .safetensors file of this folder, got {file!r}")
    state: dict[str, Array] = {}
    for file in sorted(set(places.values())):
        found, _ = files.read_tensors(folder / file, mapped=True)
        expected = {name for name, place in places.items() if place == file}
        if missing := sorted(expected - found.keys()):
            raise ValueError(f"{folder / file}: it lacks {missing[0]}, which {INDEX} says it has")
        if unknown := sorted(found.keys() - expected):
            raise ValueError(f"{folder / file}: it has {unknown[0]}, which {INDEX} does not name")
        state |= found
    return state


def floats(state: dict[str, Array]) -> dict[str, Array]:
    """Return the weights; ValueError for one that is not of floats."""
    for name, value in state.items():
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            raise ValueError(f"{name} must be of floats, got {value.dtype}")
    return state


def untied(state: dict[str, Array], tied: Mapping[str, str]) -> dict[str, Array]:
    """Leave out the copies of tied weights; ValueError for a copy that differs."""
    kept = dict(state)
    for copy, name in tied.items():
        if copy not in kept:
            continue
        value = kept.pop(copy)
        if name not in kept:
            kept[name] = value
        elif not np.array_equal(value, kept[name]):
            raise ValueError(f"{copy} differs from {name}, but the configuration ties them")
    return kept


def prefixed(state: Mapping[str, Array], prefix: str, heads: tuple[str, ...]) -> dict[str, Array]:
    """Put `prefix` before the names of a file of the bare model; those of the heads stay."""
    return {name if name.startswith((prefix, *heads)) else prefix + name: value for name, value in state.items()}


def field(fields: Mapping[str, Any], name: str) -> Any:
    """Return a field of config.json; ValueError where it is not there."""
    if name not in fields:
        raise ValueError(f"the configuration lacks {name}")
    return fields[name]


def check_type(fields: Mapping[str, Any], kind: str, architectures: tuple[str, ...]) -> str:
    """Return which of the `architectures` a configuration names; the first where it names none."""
    found = fields.get("model_type")
    if found != kind:
        raise ValueError(f"the configuration must have model_type {kind!r}, got {found!r}")
    named = fields.get("architectures") or [architectures[0]]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in architectures:
        raise ValueError(f"architectures must be one of {', '.join(architectures)}, got {named!r}")
    return str(named[0])


def check_plain(fields: Mapping[str, Any], plain: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError for an option that these models do not have; absent ones are at their default."""
    for name, allowed in plain.items():
        if name in fields and fields[name] not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {fields[name]!r}")


def parameter_dtype(fields: Mapping[str, Any]) -> str:
    """Return in which dtype parameters are kept: float64 where the file says so, else float32."""
    return "float64" if (fields.get("torch_dtype") or fields.get("dtype")) == "float64" else "float32"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
