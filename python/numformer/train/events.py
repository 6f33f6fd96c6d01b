"""The log of a run as TensorBoard reads it; the package ``tensorboard`` comes with the extra of that name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class Events:
    """Scalars and texts in an event file.

    Parameters
    ----------
    folder : path
        Where the file goes, beside those of the runs that this one resumes.
    resume : int
        Steps that were done before; later ones in older files are not shown.

    Raises
    ------
    ImportError
        Where the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, resume: int = 0) -> None:
        library()
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2, summary_pb2
        self._tensor, self._types = tensor_pb2, types_pb2
        self._writer = EventFileWriter(str(folder))
        # What other files here say of this step and later ones is void.
        self._write(session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START), step=resume + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row of the log."""
        values = [
            self._summary.Summary.Value(tag=name, simple_value=float(value))
            for name, value in row.items()
            if name != "step" and value is not None
        ]
        self._write(summary=self._summary.Summary(value=values), step=row["step"])

    def say(self, step: int, text: str) -> None:
        """Write a text."""
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensor.TensorProto(dtype=self._types.DT_STRING, string_val=[text.encode("utf-8", "replace")])
        tensor.tensor_shape.dim.add(size=1)
        value = self._summary.Summary.Value(
            tag="sample/text_summary", metadata=self._summary.SummaryMetadata(plugin_data=plugin), tensor=tensor
        )
        self._write(summary=self._summary.Summary(value=[value]), step=step)

    def _write(self, **fields: Any) -> None:
        self._writer.add_event(self._event.Event(wall_time=time.time(), **fields))

    def flush(self) -> None:
        """Return when the file has all."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def library() -> None:
    """ImportError where the package tensorboard is not installed, with what brings it."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "a log for TensorBoard needs the package tensorboard: pip install 'numformer[tensorboard]'"
        ) from error
