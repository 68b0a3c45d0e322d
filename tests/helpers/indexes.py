"""For tests of indexes: their content, and interruptions of a build."""

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterator

import pytest

from coco_jax.recognition import index_store

STEPS = ("fsync", "replace")


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of an index but its lock, by name."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Stopped(BaseException):
    """The process stops here."""


@contextlib.contextmanager
def stop_at(step: int, stop=None) -> Iterator[None]:
    """Calls `stop` (by default, raises `Stopped`) at an operation on files, counted from 0.

    After that, nothing else is written or removed, as if the process had been killed.
    """
    left = iter(range(step))
    stopped = []

    def before(real):
        def call(*args, **kwargs):
            if stopped or next(left, None) is None:
                stopped.append(True)
                if stop is not None:
                    stop()
                raise Stopped
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, before(getattr(os, name)))
        patch.setattr(index_store.shutil, "rmtree", before(index_store.shutil.rmtree))
        patch.setattr(pathlib.Path, "unlink", before(pathlib.Path.unlink))
        yield


def main() -> None:
    """Builds an index and kills this process at a step: `FOLDER OUTPUT STEP`."""
    from coco_jax.recognition import index
    from tests.helpers.rankers import ColourRanker

    folder, output, step = sys.argv[1:]
    print("start", flush=True)
    with stop_at(int(step), stop=lambda: os.kill(os.getpid(), signal.SIGKILL)):
        index.build(index.find(folder), pathlib.Path(output), ColourRanker())


if __name__ == "__main__":
    main()
