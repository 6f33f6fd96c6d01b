"""The vocabulary of a language model: any tokenizer.json, with the token that ends a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numformer.data.vocabulary import EOS, FILE, SPECIAL, BytePairVocabulary, ByteVocabulary, _library, parse

Array = NDArray[Any]

_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
"""What models call the token that ends a text, where the files do not say it."""


class LanguageVocabulary(Protocol):
    """Text to token ids and back."""

    name: str
    """Of one token."""

    def __len__(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Return the ids of each text, int32, without beginning and end."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text."""
        ...

    def to_json(self) -> str:
        """Return what tokenizer.json holds."""
        ...


class JsonVocabulary:
    """A tokenizer.json of whatever model; needs the package ``tokenizers``, which the extra "text" brings.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        What does the work; that it fills up or cuts is switched off.
    """

    name = "subwords"

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        """Return the number of tokens, added ones too."""
        return 1 + max(self.tokenizer.get_vocab().values(), default=-1)

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Return the ids of each text, int32, without beginning and end."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; beginnings and ends say nothing."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def to_json(self) -> str:
        """Return what tokenizer.json holds."""
        return str(self.tokenizer.to_str(pretty=True)) + "\n"


def parse_vocabulary(text: str, name: str, end: str | None = None) -> tuple[LanguageVocabulary, int | None]:
    """Make a vocabulary of what a tokenizer.json holds, and say which token ends a text.

    Parameters
    ----------
    text : str
        The JSON.
    name : str
        Where it is from, for errors.
    end : str, optional
        How the token that ends a text is written, where that is known.

    Returns
    -------
    vocabulary, end
        `end` is None where there is no such token.

    Raises
    ------
    ValueError
        Where it is something else.
    ImportError
        Where it needs the package tokenizers, which is not installed.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON ({error})") from error
    if isinstance(fields, dict) and fields.get("type") == "bytes":
        if fields.get("special") != list(SPECIAL):
            raise ValueError(f"{name}: special must be {list(SPECIAL)}, got {fields.get('special')}")
        return ByteVocabulary(), EOS
    tokenizer = parse(_library(), text, f"{name}: not a vocabulary")
    if [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]:
        return BytePairVocabulary(tokenizer), EOS
    for token in [end, *_ENDS]:
        if token is not None and (found := tokenizer.token_to_id(token)) is not None:
            return JsonVocabulary(tokenizer), int(found)
    return JsonVocabulary(tokenizer), None


def read_vocabulary(path: str | Path) -> tuple[LanguageVocabulary, int | None]:
    """Read a vocabulary from a tokenizer.json, or from the folder of a model that has one.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    ValueError, ImportError
        As :func:`parse_vocabulary`.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, and a text needs a tokenizer")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text, so not a tokenizer") from None
    return parse_vocabulary(text, str(file), _end(file.parent))


def _end(folder: Path) -> str | None:
    """Return what the files of a model call the token that ends a text."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            token = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # it is a hint only
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            return content
    return None
