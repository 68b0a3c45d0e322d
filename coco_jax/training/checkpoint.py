"""Checkpoints: the state, and beside it the place in the data, the config and the code's version."""

import contextlib
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from coco_jax.config import changes
from coco_jax.errors import UserError
from coco_jax.sharding import path_of
from coco_jax.training.step import Params, Program, State
from coco_jax.version import __version__

T = TypeVar("T")

# What orbax raises for damaged files: TensorStore's and json's errors are ValueErrors; a file or a key
# that is missing; metadata that is not an object is an AttributeError.
UNREADABLE = (ValueError, LookupError, OSError, AttributeError)

# How a disk that takes no more is told by the system, TensorStore and gcsfuse.
UNWRITTEN = re.compile(
    r"no space|too large|quota|RESOURCE_EXHAUSTED|read-only|input/output error|permission denied",
    re.IGNORECASE,
)


class Checkpoints:
    """The checkpoints of one run, in `folder`; written in the background, whole or not at all."""

    def __init__(self, folder: pathlib.Path, keep: int, program: Program):
        self.folder, self._program = folder, program
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # what a killed process left half written
        )
        self._manager = _open_manager(folder, options)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint, finished or being written."""
        return self._manager.latest_step()

    def save(self, state: State, config: ConfigDict, next_batch: int) -> None:
        """Starts writing a checkpoint of the state's step, once the one before is whole.

        Raises:
          UserError: this one or the one before cannot be written, e.g. as the disk is full.
        """
        meta = {
            "next_batch": next_batch,
            "config": config.to_dict(),
            "coco_jax": __version__,
            "jax": jax.__version__,
            "fingerprint": np.asarray(self._program.fingerprint(state)).tolist(),
        }
        with self._written():
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave(meta)
                ),
            )

    def restore(self) -> tuple[State, int] | None:
        """The latest state that is whole, laid out for the program, and its next batch; None if none.

        Damaged checkpoints are moved aside, to `damaged.STEP`, and named on stderr.

        Raises:
          UserError: none is whole, or they are of another model.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            got, reason = self._attempt(step)
            # What one process cannot read, none goes on from.
            if multihost_utils.process_allgather(np.array(got is not None)).all():
                self._move_aside(damaged, step)
                return got
            damaged[step] = reason or "another process could not read it"
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"{self.folder}: no checkpoint there is whole ({reasons}); remove the folder to begin "
                "again"
            )
        return None

    def _attempt(self, step: int) -> tuple[tuple[State, int] | None, str]:
        """A checkpoint, or why it cannot be had."""
        abstract = self._program.abstract
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract._asdict()), meta=ocp.args.JsonRestore()
        )
        got, reason = _read(lambda: self._manager.restore(step, args=args))
        if got is None:
            self._check_model(step, abstract)
            return None, reason
        arrays, meta = got.get("state"), got.get("meta")
        if not isinstance(arrays, dict) or not isinstance(meta, dict) or "next_batch" not in meta:
            return None, "its state or its metadata is missing"
        state = State(**arrays)
        found = np.asarray(self._program.fingerprint(state)).tolist()
        if meta.get("fingerprint", found) != found:  # 0.1.0 stored none
            return None, "its numbers are not those that were saved"
        return (state, meta["next_batch"]), ""

    def _check_model(self, step: int, abstract: State) -> None:
        """Refuses a readable checkpoint of other shapes, which is not damaged at all."""
        reader, path = ocp.PyTreeCheckpointer(), (self.folder / str(step) / "state").absolute()
        metadata, _ = _read(lambda: reader.metadata(path).item_metadata)
        if metadata is None:  # it is damaged indeed
            return
        leaves = jax.tree.leaves_with_path(metadata.tree)
        shapes = {path_of(p): tuple(getattr(x, "shape", ())) for p, x in leaves}
        wanted = {path_of(p): x.shape for p, x in jax.tree.leaves_with_path(abstract._asdict())}
        if differ := [p for p in sorted(shapes | wanted) if shapes.get(p) != wanted.get(p)]:
            first = next((p for p in differ if p.startswith("params/")), differ[0])
            raise UserError(
                f"{self.folder / str(step)}: the checkpoint is of another model ({len(differ)} arrays "
                f"differ, e.g. {first}: {shapes.get(first)} there, {wanted.get(first)} here); choose a "
                "new --workdir"
            )

    def _move_aside(self, damaged: dict[int, str], good: int) -> None:
        for step, reason in damaged.items():
            if jax.process_index() == 0:
                aside = self.folder / f"damaged.{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
                print(
                    f"{self.folder / str(step)}: THE CHECKPOINT IS DAMAGED ({reason}); it is now "
                    f"{aside.name}, and the run goes on from step {good}",
                    file=sys.stderr,
                )
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints are aside")
            self._manager.reload()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          UserError: it cannot be written, e.g. as the disk is full.
        """
        with self._written():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Says in one line that a checkpoint could not be written."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())
            if not UNWRITTEN.search(reason):
                raise
            whole = [int(p.name) for p in self.folder.iterdir() if p.name.isdigit()]
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({reason[-200:]}); the last whole "
                f"one is of step {max(whole, default=0)}. Make room, then give the same command again"
            ) from error


def _open_manager(
    folder: pathlib.Path, options: ocp.CheckpointManagerOptions | None = None
) -> ocp.CheckpointManager:
    """orbax's manager of a folder, which reads the times of all checkpoints.

    Raises:
      UserError: the file with the time of one is damaged.
    """
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except ValueError as error:
        raise UserError(
            f"{folder}: a file _CHECKPOINT_METADATA there is damaged ({' '.join(str(error).split())}); "
            "remove that file, and give the same command again"
        ) from error


def _read(read: Callable[[], T]) -> tuple[T | None, str]:
    """What a call of orbax gives, or why the files of a checkpoint cannot be read.

    Other errors than damaged files bring about pass, as they are bugs.
    """
    try:
        return read(), ""
    except Exception as error:
        # orbax wraps an error of TensorStore in a plain Exception.
        if not isinstance(error, UNREADABLE) and type(error) is not Exception:
            raise
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    """Says in one line that a checkpoint cannot be restored."""
    try:
        yield
    except (ValueError, KeyError, OSError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: the checkpoint is damaged, or of another model ({reason}); remove this folder "
            "to go back to the checkpoint before it"
        ) from error


def restore_params(folder: pathlib.Path, abstract: State) -> tuple[int, Params]:
    """The step and the parameters of the latest checkpoint in `folder`, without optimizer state.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no checkpoints there; train first, or name a run's folder")
    with _open_manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder}: holds no finished checkpoint; train first")
        restore = ocp.args.PyTreeRestore(
            {"params": abstract.params},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract.params}),
            partial_restore=True,
        )
        with _readable(folder / str(step)):
            got = manager.restore(step, args=ocp.args.Composite(state=restore))
            return step, got.state["params"]


def check_unchanged(folder: pathlib.Path, config: ConfigDict, allow: bool) -> None:
    """Refuses to go on with a run, in `folder`, under a config that differs where it matters.

    Raises:
      UserError: it differs and `allow` is not set, or the run is finished already.
    """
    done, begun = (folder / "result.json").exists(), (folder / "checkpoints").is_dir()
    if not (done or begun):
        return
    differ = changes(read_json(folder / "config.json"), config.to_dict())
    if not differ or (allow and not done):
        return
    remedy = "choose a new --workdir" + ("" if done else ", or pass --allow_config_change")
    raise UserError(f"{folder} was trained with another config ({'; '.join(differ)}); {remedy}")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """An object that a run stored.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the run's folder") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no object; remove the run's folder")
    return value
