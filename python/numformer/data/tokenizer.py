"""Tokenizers of pre-trained models: tokenizer.json, read and trained by the package ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.data.vocabulary import parse

Array = NDArray[Any]

FILE = "tokenizer.json"
_ROLES = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
}


class Tokenizer:
    """Text to token ids and back, as tokenizer.json says; needs the extra "text".

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        What does the work. That it fills up or cuts is switched off: a model does the one, `context` says the other.
    special : dict, optional
        Which token begins a text ("cls"), ends a sentence ("sep"), fills up ("pad") and hides another ("mask"); by
        default the names that BERT's and RoBERTa's files use.
    """

    def __init__(self, tokenizer: Any, special: dict[str, str] | None = None) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.special = {}
        for role, names in _ROLES.items():
            for name in [*([special[role]] if special and role in special else []), *names]:
                if tokenizer.token_to_id(name) is not None:
                    self.special[role] = name
                    break

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, and special_tokens_map.json where it is there.

        Raises
        ------
        FileNotFoundError
            Where the folder has no tokenizer.json.
        ValueError
            Where a file is damaged or something else.
        ImportError
            Where the package tokenizers is not installed.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, and a text needs a tokenizer")
        library = _library()
        wrong = f"{path}: not a tokenizer"
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{wrong} ({error})") from error
        tokenizer = parse(library, text, wrong)
        return cls(tokenizer, _special(Path(folder) / "special_tokens_map.json"))

    @classmethod
    def train_wordpiece(cls, texts: Iterable[str], size: int, *, lowercase: bool = True) -> Tokenizer:
        """Learn WordPiece from texts, with BERT's special tokens (Schuster, Nakajima, 2012; Devlin et al., 2019).

        Parameters
        ----------
        texts : iterable of str
            What to learn from.
        size : int
            Most tokens.
        lowercase : bool
            Whether capitals and accents are dropped.
        """
        library = _library()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = library.decoders.WordPiece()
        trainer = library.trainers.WordPieceTrainer(
            vocab_size=_size(size, len(special) + 1), special_tokens=special, show_progress=False
        )
        tokenizer.train_from_iterator(iter(texts), trainer)
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
        return cls(tokenizer)

    @classmethod
    def train_byte_pairs(cls, texts: Iterable[str], size: int) -> Tokenizer:
        """Learn byte-pair encoding over bytes from texts, with RoBERTa's special tokens (Radford et al., 2019).

        Parameters
        ----------
        texts : iterable of str
            What to learn from.
        size : int
            Most tokens, at least 261.
        """
        library = _library()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = level, library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=_size(size, 256 + len(special)),
            min_frequency=2,
            special_tokens=special,
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(iter(texts), trainer)
        tokenizer.post_processor = library.processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
        )
        return cls(tokenizer)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self.tokenizer.get_vocab_size())

    def id_of(self, role: str) -> int:
        """Return the id of "cls", "sep", "pad" or "mask"; ValueError where this tokenizer has none."""
        if role not in self.special:
            raise ValueError(
                f"Tokenizer: it has no token for {role!r}, only for {', '.join(self.special) or 'nothing'}"
            )
        return int(self.tokenizer.token_to_id(self.special[role]))

    def encode(self, texts: Sequence[str], *, context: int | None = None) -> list[Array]:
        """Return the ids of each text, int64, with whatever begins and ends it, cut to `context`."""
        return [np.array(one.ids, np.int64) for one in self._encode(list(texts), context)]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], *, context: int | None = None
    ) -> tuple[list[Array], list[Array]]:
        """Return the ids of pairs of texts and their token types; the longer text is cut to `context`."""
        found = self._encode([tuple(pair) for pair in pairs], context)
        return [np.array(one.ids, np.int64) for one in found], [np.array(one.type_ids, np.int64) for one in found]

    def _encode(self, inputs: list[Any], context: int | None) -> list[Any]:
        if context is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(context)
        return list(self.tokenizer.encode_batch(inputs))

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Return the text; special tokens are left out unless `special` says otherwise."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special))

    def token(self, index: int) -> str:
        """Return how a token is written; ValueError where there is none."""
        found = self.tokenizer.id_to_token(int(index))
        if found is None:
            raise ValueError(f"Tokenizer: tokens are numbered below {len(self)}, got {index}")
        return str(found)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json."""
        self.tokenizer.no_truncation()
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE).write_text(self.tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def _size(size: int, least: int) -> int:
    if size < least:
        raise ValueError(f"Tokenizer: size must be at least {least}, got {size}")
    return size


def _special(path: Path) -> dict[str, str]:
    """Read which token plays which role."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        named = {role: fields.get(f"{role}_token") for role in _ROLES}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a table of special tokens ({error})") from error
    contents = {role: name.get("content") if isinstance(name, dict) else name for role, name in named.items()}
    names = {role: name for role, name in contents.items() if isinstance(name, str)}
    try:
        "".join(names.values()).encode("utf-8")
    except UnicodeEncodeError as error:  # half a character, which JSON can say
        raise ValueError(f"{path}: not a table of special tokens ({error})") from error
    return names


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError("a tokenizer needs the package tokenizers: pip install 'numformer[text]'") from error
    return tokenizers
