"""All that a run writes while it goes on, but for its weights: log, samples of text, events for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from numformer import files
from numformer.train import log
from numformer.train.events import FOLDER, Events

SAMPLES = "samples.jsonl"


class Record:
    """The files of a run in a folder, or rows in memory only.

    Parameters
    ----------
    folder : Path, optional
        Where log.csv, samples.jsonl and tensorboard/ go.
    resume : int
        Steps that were done before: what is there of later ones is left out.
    extra : tuple of str
        Columns of the log after the usual ones.
    events : bool
        Whether TensorBoard is to read them too.
    """

    def __init__(
        self, folder: Path | None, resume: int = 0, extra: tuple[str, ...] = (), *, events: bool = False
    ) -> None:
        self.log = log.Log(None if folder is None else folder / "log.csv", resume=resume, extra=extra)
        self._events = Events(folder / FOLDER, resume) if events and folder is not None else None
        self._samples = None if folder is None else folder / SAMPLES
        if self._samples is not None and self._samples.is_file():
            kept = [one for one in read_samples(self._samples) if one["step"] <= resume] if resume else []
            files.write_text(self._samples, "".join(map(_line, kept)))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the log."""
        return self.log.rows

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.log.add(row)
        if self._events is not None:
            self._events.add(row)

    def say(self, step: int, text: str) -> None:
        """Keep a sample of text."""
        if self._samples is not None:
            with self._samples.open("a", encoding="utf-8") as file:
                file.write(_line({"step": step, "text": text}))
                file.flush()
                os.fsync(file.fileno())
        if self._events is not None:
            self._events.say(step, text)

    def flush(self) -> None:
        """Return when all of it is on the disk."""
        self.log.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Close the files."""
        self.log.close()
        if self._events is not None:
            self._events.close()


def _line(sample: dict[str, Any]) -> str:
    return json.dumps({"step": sample["step"], "text": sample["text"]}, ensure_ascii=False) + "\n"


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read samples of text; a last line that was cut is left out.

    Raises
    ------
    ValueError
        Where a line is something else.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    try:
        return [{"step": int(one["step"]), "text": str(one["text"])} for one in map(json.loads, lines)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the samples of a training run ({error})") from error
