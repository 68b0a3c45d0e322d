"""Checkpoints: the state, the number of the next batch, the config and the version of the code."""

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

# Errors that orbax raises for damaged files. Those of TensorStore and json are ValueErrors; metadata
# that is not an object causes an AttributeError.
UNREADABLE = (ValueError, LookupError, OSError, AttributeError)

# Messages of the system, TensorStore and gcsfuse if a file cannot be written, e.g. on a full disk.
UNWRITTEN = re.compile(
    r"no space|too large|quota|RESOURCE_EXHAUSTED|read-only|input/output error|permission denied",
    re.IGNORECASE,
)


class Checkpoints:
    """The checkpoints of one run in `folder`, written atomically and in the background."""

    def __init__(self, folder: pathlib.Path, keep: int, program: Program):
        self.folder, self._program = folder, program
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # incomplete ones of killed processes
        )
        self._manager = _open_manager(folder, options)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint, complete or being written."""
        return self._manager.latest_step()

    def save(self, state: State, config: ConfigDict, next_batch: int) -> None:
        """Waits until the previous checkpoint is complete, then starts writing this one.

        Raises:
          UserError: this or the previous checkpoint cannot be written, e.g. because the disk is full.
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
        """Restores the latest readable checkpoint, sharded for the program.

        Damaged checkpoints are moved to `damaged.STEP` and reported on stderr.

        Returns:
          The state and the number of its next batch; None if there are no checkpoints.

        Raises:
          UserError: all checkpoints are damaged, or they are of another model.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            got, reason = self._attempt(step)
            # Use a checkpoint only if all processes can read it.
            if multihost_utils.process_allgather(np.array(got is not None)).all():
                self._move_aside(damaged, step)
                return got
            damaged[step] = reason or "another process could not read it"
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"{self.folder}: all checkpoints are damaged ({reasons}); remove the folder to start "
                "again"
            )
        return None

    def _attempt(self, step: int) -> tuple[tuple[State, int] | None, str]:
        """Restores a checkpoint; returns None and the reason if it is damaged."""
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
            return None, "its values do not match the stored fingerprint"
        return (state, meta["next_batch"]), ""

    def _check_model(self, step: int, abstract: State) -> None:
        """Raises an error if the checkpoint is readable but has other shapes: it is not damaged."""
        reader, path = ocp.PyTreeCheckpointer(), (self.folder / str(step) / "state").absolute()
        metadata, _ = _read(lambda: reader.metadata(path).item_metadata)
        if metadata is None:  # the checkpoint is damaged
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
                moved = self.folder / f"damaged.{step}"
                shutil.rmtree(moved, ignore_errors=True)
                (self.folder / str(step)).rename(moved)
                print(
                    f"{self.folder / str(step)}: THE CHECKPOINT IS DAMAGED ({reason}); moved it to "
                    f"{moved.name}; resuming from step {good}",
                    file=sys.stderr,
                )
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints are moved")
            self._manager.reload()

    def close(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          UserError: it cannot be written, e.g. because the disk is full.
        """
        with self._written():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Converts errors of writing to a UserError."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())
            if not UNWRITTEN.search(reason):
                raise
            complete = [int(p.name) for p in self.folder.iterdir() if p.name.isdigit()]
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({reason[-200:]}); the last "
                f"complete one is of step {max(complete, default=0)}. Free some space, then run "
                "the same command again"
            ) from error


def _open_manager(
    folder: pathlib.Path, options: ocp.CheckpointManagerOptions | None = None
) -> ocp.CheckpointManager:
    """Opens orbax's manager of a folder, which reads the _CHECKPOINT_METADATA of all checkpoints.

    Raises:
      UserError: one of these files is damaged.
    """
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except ValueError as error:
        raise UserError(
            f"{folder}: a file _CHECKPOINT_METADATA there is damaged ({' '.join(str(error).split())}); "
            "remove that file and run the same command again"
        ) from error


def _read(read: Callable[[], T]) -> tuple[T | None, str]:
    """Calls `read`; returns its result, or None and the reason if files of a checkpoint are damaged.

    Errors that damaged files cannot cause are bugs, and are raised.
    """
    try:
        return read(), ""
    except Exception as error:
        # orbax converts some errors of TensorStore to a plain Exception.
        if not isinstance(error, UNREADABLE) and type(error) is not Exception:
            raise
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    """Converts errors of restoring to a UserError."""
    try:
        yield
    except (ValueError, KeyError, OSError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: the checkpoint is damaged, or of another model ({reason}); remove this folder "
            "to use the previous checkpoint"
        ) from error


def restore_params(folder: pathlib.Path, abstract: State) -> tuple[int, Params]:
    """The step and the parameters of the latest checkpoint in `folder`, without optimizer state.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no checkpoints; train first, or give the folder of another run")
    with _open_manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder}: no complete checkpoint; train first")
        restore = ocp.args.PyTreeRestore(
            {"params": abstract.params},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract.params}),
            partial_restore=True,
        )
        with _readable(folder / str(step)):
            got = manager.restore(step, args=ocp.args.Composite(state=restore))
            return step, got.state["params"]


def check_unchanged(folder: pathlib.Path, config: ConfigDict, allow: bool) -> None:
    """Checks that the run in `folder` was started with the same config.

    Only fields that affect the result are compared (see `FREE`).

    Raises:
      UserError: a field differs, and `allow` is False or the run is finished.
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
    """Reads a JSON object that a run stored.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the run's folder") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; remove the run's folder")
    return value
