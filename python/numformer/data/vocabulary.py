"""Vocabularies: bytes, which need no learning, and pairs of bytes, merged as the text has them often."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PAD, BOS, EOS = 0, 1, 2
"""Tokens that fill up, begin and end a sentence, in every vocabulary here."""
SPECIAL = ("<pad>", "<s>", "</s>")
FILE = "tokenizer.json"


class Vocabulary(Protocol):
    """Text to token ids and back; the ids of :data:`PAD`, :data:`BOS`, :data:`EOS` are never those of text."""

    name: str
    """Of one token: "bytes" or "subwords"."""

    def __len__(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Return the ids of each text, int32, without beginning and end."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text up to the first end; padding and beginnings say nothing."""
        ...

    def to_json(self) -> str:
        """Return what tokenizer.json holds."""
        ...


class ByteVocabulary:
    """The 256 bytes of UTF-8, after the three tokens that are no text."""

    name = "bytes"

    def __len__(self) -> int:
        """Return 259."""
        return 256 + len(SPECIAL)

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Return the ids of each text, int32, without beginning and end."""
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + len(SPECIAL) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text up to the first end; what is no UTF-8 becomes the replacement character."""
        return bytes(i - len(SPECIAL) for i in _said(ids, len(self))).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Return what tokenizer.json holds."""
        return json.dumps({"type": "bytes", "special": list(SPECIAL)}) + "\n"


class BytePairVocabulary:
    """Byte-pair encoding over bytes, so that every text can be said; nothing of the text is lost.

    Needs the package ``tokenizers``, which numformer's extra "text" brings.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Whose first three tokens are those of :data:`SPECIAL`.

    References
    ----------
    R. Sennrich, B. Haddow, A. Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016.
    """

    name = "subwords"

    def __init__(self, tokenizer: Any) -> None:
        found = [tokenizer.token_to_id(token) for token in SPECIAL]
        if found != [PAD, BOS, EOS]:
            raise ValueError(
                f"BytePairVocabulary: {', '.join(SPECIAL)} must be the tokens {PAD}, {BOS}, {EOS}, got {found}"
            )
        tokenizer.encode_special_tokens = True  # "</s>" in a text is text
        self.tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> BytePairVocabulary:
        """Learn merges from texts; the same texts give the same vocabulary.

        Parameters
        ----------
        texts : iterable of str
            Of all languages together.
        size : int
            Most tokens, at least 259; fewer where the texts have no more pairs that come twice.
        """
        if size < 256 + len(SPECIAL):
            raise ValueError(f"BytePairVocabulary: size must be at least {256 + len(SPECIAL)}, got {size}")
        library = _library()
        level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = level
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(iter(texts), trainer)
        return cls(tokenizer)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Return the ids of each text, int32, without beginning and end."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text up to the first end; what is no UTF-8 becomes the replacement character."""
        return str(self.tokenizer.decode(_said(ids, len(self)), skip_special_tokens=True))

    def to_json(self) -> str:
        """Return what tokenizer.json holds."""
        return str(self.tokenizer.to_str(pretty=True)) + "\n"


def _said(ids: Iterable[int], size: int) -> list[int]:
    """Return the ids that are text."""
    said = []
    for i in map(int, ids):
        if i == EOS:
            break
        if not 0 <= i < size:
            raise ValueError(f"decode: ids must be in [0, {size}), got {i}")
        if i not in (PAD, BOS):
            said.append(i)
    return said


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError(
            "a byte-pair vocabulary needs the package tokenizers: pip install 'numformer[text]'"
        ) from error
    return tokenizers


def has_tokenizers() -> bool:
    """Whether the package tokenizers is installed."""
    from importlib.util import find_spec

    return find_spec("tokenizers") is not None


def load_vocabulary(folder: str | Path) -> Vocabulary:
    """Read the vocabulary of a model from tokenizer.json in its folder.

    Raises
    ------
    ValueError
        Where the file is damaged or something else.
    ImportError
        Where it is a byte-pair vocabulary and the package tokenizers is not installed.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so this is not the folder of a model that translates")
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if isinstance(fields, dict) and fields.get("type") == "bytes":
        if fields.get("special") != list(SPECIAL):
            raise ValueError(f"{path}: special must be {list(SPECIAL)}, got {fields.get('special')}")
        return ByteVocabulary()
    tokenizer = parse(_library(), text, f"{path}: not a vocabulary")
    try:
        return BytePairVocabulary(tokenizer)
    except ValueError as error:
        raise ValueError(f"{path}: not a vocabulary ({error})") from error


def parse(library: Any, text: str, wrong: str) -> Any:
    """Return the Tokenizer that a text describes; ValueError that begins with `wrong` where it describes none."""
    try:
        return library.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises nothing narrower, and where it panics what is no Exception
        raise ValueError(f"{wrong} ({error})") from None
