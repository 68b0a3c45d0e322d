"""Checkpoints: the state, and beside it the place in the data, the config and the code's version."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

import coco_jax
from coco_jax.errors import UserError
from coco_jax.step import Params, State

# What may differ between a run and its resumption: where and how fast it runs, not what it computes
# (but for the order in which another mesh adds floats).
FREE = ("sweep.", "log_every", "checkpoint_every", "keep", "mesh.", "data.dir",
        "data.workers", "data.threads", "data.cache")  # fmt: skip


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as `{"data.batch": 64, ...}`, as JSON would bring it back."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`field: old -> new` of every field that matters to a resumed run."""
    a, b = flatten(old), flatten(new)
    return [
        f"{name}: {a.get(name)} -> {b.get(name)}"
        for name in sorted(a | b)
        if a.get(name) != b.get(name) and not name.startswith(FREE)
    ]


class Checkpoints:
    """The checkpoints of one run, in `folder`; written in the background, whole or not at all."""

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    def save(self, state: State, config: ConfigDict, next_batch: int) -> None:
        """Starts writing a checkpoint of the state's step."""
        meta = {
            "next_batch": next_batch,
            "config": config.to_dict(),
            "coco_jax": coco_jax.__version__,
            "jax": jax.__version__,
        }
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(self, abstract: State) -> tuple[State, int] | None:
        """The latest state, laid out as `abstract` says, and its next batch; None if there is none.

        Raises:
          UserError: it is damaged, or of another model.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        with _readable(self.folder / str(step)):
            got = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract._asdict()), meta=ocp.args.JsonRestore()
                ),
            )
            return State(**got.state), got.meta["next_batch"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


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
    with ocp.CheckpointManager(folder.absolute()) as manager:
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
