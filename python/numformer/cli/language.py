"""What language models are trained on, and how their folders say text: byte by byte, or by a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numformer import files
from numformer.cli import folders
from numformer.data import (
    TokenFile,
    Windows,
    builtin_text,
    is_token_file,
    parse_vocabulary,
    read_files,
    read_vocabulary,
    split,
    to_text,
    to_tokens,
)
from numformer.data.language import LanguageVocabulary
from numformer.data.vocabulary import FILE
from numformer.models import GPT, TransformerXL, from_pretrained

Array = np.ndarray[Any, Any]
HELD = 512
"""Windows of a token file that are held out to validate, at most: an evaluation reads all of them."""


class Bytes:
    """The 256 bytes of UTF-8, and nothing else."""

    name = "bytes"

    def __len__(self) -> int:
        return 256

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Return the bytes of each text."""
        return [to_tokens(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of bytes."""
        return to_text(np.fromiter(ids, np.int64))

    def to_json(self) -> str:
        """Return nothing: a folder without tokenizer.json has bytes."""
        return ""


@dataclass
class Corpus:
    """What a gpt is trained on.

    Parameters
    ----------
    training, validation : Windows
        Samples.
    vocabulary : LanguageVocabulary, optional
        None where a token file was written without one.
    vocab_size : int
        Tokens are below it.
    unit : str
        What a token is, in the singular.
    name : str
        What it is.
    """

    training: Windows
    validation: Windows
    vocabulary: LanguageVocabulary | None
    vocab_size: int
    unit: str
    name: str

    @property
    def prompt(self) -> Array:
        """The beginning of the validation text, a quarter of the context, to continue for a sample."""
        count = self.training.context // 4 or 1
        if self.validation.documents is not None and len(self.validation.documents) > 2:
            first = int(self.validation.documents[1])
            count = min(count, max(1, first // 2))
        return np.asarray(self.validation.tokens[:count]).astype(np.int64)

    def decode(self, ids: Array) -> str:
        """Return the text of tokens; their numbers where nobody knows what they say."""
        return " ".join(map(str, ids.tolist())) if self.vocabulary is None else self.vocabulary.decode(ids)

    def save(self, folder: Path) -> None:
        """Write the vocabulary of a model beside it."""
        text = "" if self.vocabulary is None else self.vocabulary.to_json()
        if text:
            files.write_text(folder / FILE, text)


def corpus(paths: list[Path], context: int, packing: bool | None) -> Corpus:
    """Read text, or open a token file."""
    tokens = [path for path in paths if is_token_file(path)]
    if tokens:
        if len(paths) > 1:
            other = next(path for path in paths if path != tokens[0])
            raise ValueError(
                f"train: a token file must be the only one, got {other} too; numformer tokenize joins files"
            )
        return _opened(tokens[0], context, packing)
    if packing:
        raise ValueError("train: --packing is for a token file, which numformer tokenize makes")
    text = read_files(paths) if paths else to_tokens(builtin_text())
    training, validation = split(text)
    _long_enough(len(training), len(validation), context, f"the text has {len(text)} bytes")
    name = ", ".join(map(str, paths)) if paths else "Python's reference manual"
    return Corpus(Windows(training, context), Windows(validation, context), Bytes(), 256, "byte", name)


def _opened(path: Path, context: int, packing: bool | None) -> Corpus:
    file = TokenFile(path)
    vocabulary = None
    if file.tokenizer:
        vocabulary, _ = parse_vocabulary(file.tokenizer, str(path))
        if len(vocabulary) > file.vocab_size:
            raise ValueError(f"{path}: its tokenizer has {len(vocabulary)} tokens, and {file.vocab_size} are allowed")
    total, places = len(file.tokens), file.documents
    held = min(total // 10, HELD * context)
    number = int(np.searchsorted(places, total - held, side="right")) - 1
    begin = int(places[number])
    # Where the document that is cut is not long, it is held out as a whole.
    cut = begin if total - 2 * held <= begin and begin > context else total - held
    _long_enough(cut, total - cut, context, f"{path} has {total} tokens")
    packed = len(file) > 1 if packing is None else packing
    ends = places[: number + (1 if cut == begin else 2)]  # a view, however many there are
    rest = np.maximum(places[number:] - cut, 0)
    options: dict[str, Any] = {"limit": file.vocab_size, "advise": file.advise}
    return Corpus(
        Windows(file.tokens[:cut], context, documents=ends if packed else None, epochs=True, **options),
        Windows(file.tokens[cut:], context, documents=rest if packed else None, **options),
        vocabulary,
        file.vocab_size,
        "token",
        f"{path}, {len(file):,} documents" + (" that do not see each other" if packed else ""),
    )


def _long_enough(training: int, validation: int, context: int, what: str) -> None:
    if training <= context or validation < 2:
        raise ValueError(f"train: {what}, too few for a context of {context}; add text or shorten --context")


def load(folder: Path, dtype: str | None = None) -> tuple[GPT | TransformerXL, LanguageVocabulary, int | None]:
    """Read a gpt or a transformer-xl, with weights of a dtype, its vocabulary, and the token that ends its texts."""
    folders.require(folder, folders.GPT, folders.TRANSFORMER_XL)
    model: GPT | TransformerXL = from_pretrained(folder, dtype=dtype)
    size = model.config.vocab_size
    if not (folder / FILE).is_file():
        if size != 256:
            raise ValueError(
                f"{folder}: the model has {size} tokens, and there is no {FILE} that says them; without one "
                "this command knows byte-level models, of 256"
            )
        return model, Bytes(), None
    vocabulary, end = read_vocabulary(folder)
    if len(vocabulary) > size:
        raise ValueError(
            f"{folder}: {FILE} has {len(vocabulary)} tokens and the model {size}; they do not belong together"
        )
    return model, vocabulary, end
