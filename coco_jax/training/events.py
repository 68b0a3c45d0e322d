"""Writes scalars for TensorBoard, without importing TensorFlow.

`clu.metric_writers` and TensorBoard's own writers import TensorFlow, if it is installed, which takes
longer than everything else at the start of a short run.
"""

import itertools
import os
import pathlib
import socket
import time
from collections.abc import Mapping

import numpy as np

_numbers = itertools.count()  # of the files that this process writes


class EventWriter:
    """Writes scalars into a new file of events in a folder.

    Use it in one thread. Each `write_scalars` is visible to TensorBoard when it returns.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Creates the file `events.out.tfevents.SECONDS.HOST.PROCESS.NUMBER.v2`."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = (
            f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}."
            f"{next(_numbers)}.v2"
        )
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = (pathlib.Path(folder) / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._file.flush()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars, by tag, at a step."""
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.scalar.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        metadata = create_summary_metadata(display_name="", description="")
        values = [
            summary_pb2.Summary.Value(
                tag=tag,
                tensor=make_tensor_proto(np.array(value, np.float32)),
                metadata=metadata,
            )
            for tag, value in scalars.items()
        ]
        self._write(step=step, summary=summary_pb2.Summary(value=values))
        self._file.flush()

    def _write(self, **fields: object) -> None:
        from tensorboard.compat.proto import event_pb2

        event = event_pb2.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the file; calling it again has no effect."""
        self._file.close()
