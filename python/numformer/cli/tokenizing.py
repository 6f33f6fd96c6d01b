"""``numformer tokenize``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from numformer.data import (
    BytePairVocabulary,
    ByteVocabulary,
    TokenFile,
    encode_documents,
    has_tokenizers,
    read_documents,
    read_vocabulary,
    write_tokens,
)
from numformer.data.documents import Piece
from numformer.data.language import LanguageVocabulary
from numformer.data.token_file import SUFFIX
from numformer.data.vocabulary import EOS

LEARN = 1 << 28
"""Characters that a vocabulary is learned from, at most: the first ones of the corpus."""


def run(
    *,
    files: list[Path],
    out: Path | None,
    vocab: int | None,
    tokenizer: Path | None,
    documents: str,
    separator: str,
    end: bool,
    threads: int | None,
    quiet: bool,
) -> None:
    """Learn or read a vocabulary, then write tokens as the text comes."""
    if threads is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of the package tokenizers, before it starts
    if tokenizer is not None and vocab is not None:
        raise ValueError("tokenize: --vocab or --tokenizer may be given, not both")
    out = out or files[0].with_name(files[0].name.split(".")[0] + SUFFIX)
    if out.suffix != SUFFIX:
        raise ValueError(f"tokenize: --out must end in {SUFFIX}, by which numformer train knows it, got {out}")
    size = sum(path.stat().st_size for path in files)
    options: dict[str, Any] = {"split": documents, "separator": separator}
    vocabulary, last = _vocabulary(files, vocab, tokenizer, options, quiet)
    if end and last is None:
        typer.echo(f"{tokenizer} has no token that ends a text: documents have places of their own only")
    begin = time.monotonic()
    with _progress("tokens", size, quiet) as progress:
        count, total = write_tokens(
            out,
            _some(encode_documents(read_documents(files, progress=progress, **options), vocabulary.encode), files),
            vocab_size=len(vocabulary),
            end=last if end else None,
            tokenizer=vocabulary.to_json(),
        )
    seconds = max(time.monotonic() - begin, 1e-9)
    typer.echo(
        f"{out}: {count:,} documents, {total:,} tokens of {len(vocabulary):,} {vocabulary.name}, "
        f"{size / max(total, 1):.2f} bytes a token, {out.stat().st_size:,} bytes; {size / seconds / 1e6:,.1f} MB/s"
    )


def check(*, files: list[Path], quiet: bool) -> None:
    """Say what token files hold, after reading all of them."""
    for path in files:
        found = TokenFile(path)
        with _progress("check", path.stat().st_size, quiet) as progress:
            done = 0

            def on(count: int, progress: Callable[[int], None] | None = progress) -> None:
                nonlocal done
                if progress is not None:
                    progress(count - done)
                done = count

            found.verify(on)
        typer.echo(
            f"{path}: whole; {len(found):,} documents, {len(found.tokens):,} tokens of {found.vocab_size:,}, "
            f"{found.tokens.dtype}"
        )


def _vocabulary(
    files: list[Path], vocab: int | None, tokenizer: Path | None, options: dict[str, Any], quiet: bool
) -> tuple[LanguageVocabulary, int | None]:
    if tokenizer is not None:
        return read_vocabulary(tokenizer)
    if vocab is None and not has_tokenizers():
        typer.echo("without the package tokenizers a token is a byte: pip install 'numformer[text]' for subwords")
    if vocab == 0 or (vocab is None and not has_tokenizers()):
        return ByteVocabulary(), EOS
    with _progress("vocabulary", min(sum(path.stat().st_size for path in files), LEARN), quiet) as progress:
        pieces = read_documents(files, progress=progress, **options)
        return BytePairVocabulary.train(_first(pieces, LEARN), 8000 if vocab is None else vocab), EOS


def _first(pieces: Iterator[Piece], limit: int) -> Iterator[str]:
    """Give texts until there are so many characters."""
    for text, _ in pieces:
        yield text
        limit -= len(text)
        if limit <= 0:
            return


def _some(encoded: Iterator[Any], files: list[Path]) -> Iterator[Any]:
    """Refuse a corpus without a single token."""
    first = list(islice(encoded, 1))
    if not first:
        raise ValueError(f"tokenize: there is no text in {', '.join(map(str, files))}")
    yield from first
    yield from encoded


@contextmanager
def _progress(name: str, total: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Give what is told of bytes that are done: a bar on a terminal, nothing elsewhere; on stderr."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[Any] = [TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, advance=done)
