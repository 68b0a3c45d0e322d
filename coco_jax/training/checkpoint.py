"""Checkpoints: the state, the number of the next batch, the config and the version of the code."""

import contextlib
import errno
import functools
import hashlib
import json
import pathlib
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from coco_jax import files
from coco_jax.config import changes
from coco_jax.errors import UserError
from coco_jax.printing import printable
from coco_jax.sharding import path_of
from coco_jax.training.step import Params, Program, State
from coco_jax.version import __version__

T = TypeVar("T")

# Errors that orbax raises for damaged files. Those of TensorStore and json are ValueErrors; metadata
# that is not an object causes an AttributeError, deeply nested JSON a RecursionError.
# A sharding with an unknown name causes a NotImplementedError.
UNREADABLE = (
    ValueError, LookupError, OSError, AttributeError, RecursionError, NotImplementedError,
)  # fmt: skip

META = {"next_batch", "config", "coco_jax", "jax"}  # metadata of the checkpoints of every version

# How much smaller the files of a checkpoint may be than its parameters: much more than compression
# saves. A file of a few bytes could otherwise ask for all memory of the machine.
MAX_COMPRESSION = 100

# By default orbax cuts each array into slices, one for each device that holds it, and compiles a
# program for each shape, which makes the first save much slower. Only larger slices are written so.
MIN_SLICE_BYTES = 1 << 20

# Messages of the system, TensorStore and gcsfuse if a file cannot be written, e.g. on a full disk.
UNWRITTEN = re.compile(
    r"no space|too large|quota|RESOURCE_EXHAUSTED|read-only|input/output error|permission denied",
    re.IGNORECASE,
)


class Checkpoints:
    """The checkpoints of one run in `folder`, written atomically and in the background."""

    def __init__(self, folder: pathlib.Path, keep: int, program: Program):
        self.folder, self._program = folder, program
        _write_small_arrays_whole()
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
        meta["checksum"] = _checksum(meta)
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
            got, reason = self._read_step(step)
            # All processes must do the same: what follows needs all of them.
            if multihost_utils.process_allgather(np.array(got is None)).any():
                damaged[step] = reason or "another process could not read it"
                continue
            assert got is not None
            state, meta = got
            if mismatch := _mismatch(self._program, step, state, meta):
                damaged[step] = mismatch
                continue
            self._move_aside(damaged, step)
            return state, meta["next_batch"]
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"{self.folder}: all checkpoints are damaged ({reasons}); remove the folder to start "
                "again"
            )
        return None

    def _read_step(self, step: int) -> tuple[tuple[State, dict[str, Any]] | None, str]:
        """Reads the state and the metadata of a checkpoint; None and a reason if it is damaged."""
        abstract = self._program.abstract
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract._asdict()), meta=ocp.args.JsonRestore()
        )
        got, reason = _read(lambda: self._manager.restore(step, args=args))
        if got is None:
            _check_model(self.folder / str(step), abstract._asdict(), "choose a new --workdir")
            return None, reason
        arrays, meta = got.get("state"), got.get("meta")
        if not isinstance(arrays, dict) or not isinstance(meta, dict) or not meta.keys() >= META:
            return None, "its state or its metadata is missing"
        return (None, missing) if (missing := _missing(arrays)) else ((State(**arrays), meta), "")

    def _move_aside(self, damaged: dict[int, str], good: int) -> None:
        for step, reason in damaged.items():
            if jax.process_index() == 0:
                moved = self.folder / f"damaged.{step}"
                shutil.rmtree(moved, ignore_errors=True)
                (self.folder / str(step)).rename(moved)
                print(
                    f"{self.folder / str(step)}: THE CHECKPOINT IS DAMAGED ({printable(reason)}); "
                    f"moved it to {moved.name}; resuming from step {good}",
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


@functools.cache
def _write_small_arrays_whole() -> None:
    handlers, before = ocp.type_handlers, logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns that there is a handler already
    try:
        whole = handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES)
        handlers.register_type_handler(jax.Array, whole, override=True)
    finally:
        logging.set_verbosity(before)


def _checksum(meta: dict[str, Any]) -> str:
    """SHA-256 of the metadata of a checkpoint, without the checksum itself."""
    rest = {name: value for name, value in meta.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _mismatch(program: Program, step: int, state: Any, meta: dict[str, Any]) -> str:
    """Why restored arrays and metadata are not those that were saved; "" if they are.

    Args:
      program: of the run.
      step: of the checkpoint.
      state: the first arrays of the State, at least its step.
      meta: the metadata. That of older checkpoints has no checksum, and in 0.1.0 no fingerprint.
    """
    if meta.get("checksum", expected := _checksum(meta)) != expected:
        return "its metadata does not match the stored checksum"
    found = np.asarray(program.fingerprint(state)).tolist()
    stored = meta.get("fingerprint", found)
    if not isinstance(stored, list) or stored[: len(found)] != found:
        return "its values do not match the stored fingerprint"
    stored_step = jax.tree.leaves(state)[0]
    return "" if int(stored_step) == step else f"its values are of step {stored_step}"


def _check_model(folder: pathlib.Path, abstract: dict[str, Any], remedy: str) -> None:
    """Compares shapes before anything is restored.

    Args:
      folder: of the checkpoint.
      abstract: shapes of the arrays to restore, by part of the state.
      remedy: the end of the error message.

    Raises:
      UserError: the checkpoint is readable and has other shapes, so it is not damaged.
    """
    reader = ocp.PyTreeCheckpointHandler()
    metadata, _ = _read(lambda: reader.metadata((folder / "state").absolute()).tree)
    if metadata is None:  # the checkpoint is damaged
        return
    leaves = jax.tree.leaves_with_path(metadata)
    shapes = {path_of(p): tuple(getattr(x, "shape", ())) for p, x in leaves}
    shapes = {p: shape for p, shape in shapes.items() if p.split("/")[0] in abstract}
    wanted = {path_of(p): x.shape for p, x in jax.tree.leaves_with_path(abstract)}
    if differ := [p for p in sorted(shapes | wanted) if shapes.get(p) != wanted.get(p)]:
        first = next((p for p in differ if p.startswith("params/")), differ[0])
        raise UserError(
            f"{folder}: the checkpoint is of another model ({len(differ)} arrays differ, e.g. {first}: "
            f"{shapes.get(first)} there, {wanted.get(first)} here); {remedy}"
        )


def _open_manager(
    folder: pathlib.Path, options: ocp.CheckpointManagerOptions | None = None
) -> ocp.CheckpointManager:
    """Opens orbax's manager of a folder, which reads the _CHECKPOINT_METADATA of all checkpoints.

    Raises:
      UserError: one of these files is damaged, or something there is not a regular file.
    """
    try:
        files.check_tree(folder)
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or folder
        raise UserError(f"{where}: cannot be read ({error.strerror}); remove it") from error
    except (ValueError, RecursionError) as error:
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
        is_plain = type(error) is Exception
        if not isinstance(error, UNREADABLE) and not is_plain and not _is_assertion_of_orbax(error):
            raise
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _is_assertion_of_orbax(error: Exception) -> bool:
    """Whether an assert in orbax failed, as with some damaged paths of arrays."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, AssertionError) and "orbax" in pathlib.Path(last.filename).parts


def check_trained(folder: pathlib.Path) -> None:
    """Checks that there is a folder of checkpoints.

    Raises:
      UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no checkpoints; train first, or give the folder of another run")


def restore_params(folder: pathlib.Path, program: Program) -> tuple[int, Params]:
    """The step and the parameters of the latest checkpoint in `folder`, without optimizer state.

    The parameters are those that were saved: they are compared with the stored fingerprint. Version
    0.1.0 stored none.

    Raises:
      UserError: there is no checkpoint, or it is damaged, of another model, or has values that are not
        finite.
    """
    check_trained(folder)
    with _open_manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder}: no complete checkpoint; train first")
        checkpoint = folder / str(step)
        wanted = {"step": program.abstract.step, "params": program.abstract.params}
        _check_model(checkpoint, wanted, "give the folder of another run")
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(wanted))
        if size > MAX_COMPRESSION * files.check_tree(checkpoint):
            reason = f"its files are too small for {size:,} bytes of parameters"
        else:
            got, reason = _read(lambda: _restore_parts(manager, step, wanted))
            if got is not None:
                arrays, meta = got
                # As a tuple, so that the arrays have the order of a State.
                state = (arrays["step"], arrays["params"])
                reason = _mismatch(program, step, state, meta) or _not_finite(arrays["params"])
                if not reason:
                    return step, arrays["params"]
    raise UserError(
        f"{checkpoint}: the checkpoint is damaged ({reason}); remove this folder to use the previous "
        "checkpoint"
    )


def _restore_parts(
    manager: ocp.CheckpointManager, step: int, wanted: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The wanted parts of the state, and the metadata."""
    state = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    args = ocp.args.Composite(state=state, meta=ocp.args.JsonRestore())
    got = manager.restore(step, args=args)
    arrays, meta = got.get("state"), got.get("meta")
    if not isinstance(arrays, dict) or not isinstance(meta, dict) or not meta.keys() >= META:
        raise ValueError("its state or its metadata is missing")
    if missing := _missing(arrays):
        raise ValueError(missing)
    return arrays, meta


def _missing(arrays: dict[str, Any]) -> str:
    """The path of an array that orbax did not restore, as a sentence; "" if there is none.

    With some damages of its metadata, orbax returns the wanted shape instead of an array.
    """
    for path, leaf in jax.tree.leaves_with_path(arrays):
        if not isinstance(leaf, jax.Array):
            return f"{path_of(path)} is missing"
    return ""


def _not_finite(params: Params) -> str:
    """The path of a parameter that has NaN or infinity, as a sentence; "" if there is none."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not all(np.isfinite(shard.data).all() for shard in leaf.addressable_shards):
            return f"{path_of(path)} has values that are not finite"
    return ""


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
        value = json.loads(files.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the run's folder") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; remove the run's folder")
    return value
