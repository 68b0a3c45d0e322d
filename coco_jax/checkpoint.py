"""Checkpoints: the state, and beside it the place in the data, the config and the code's version."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

import coco_jax
from coco_jax.errors import UserError
from coco_jax.step import Params, State

# What may differ between a run and its resumption without changing what it computes.
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

    def restore(
        self, abstract: State, config: ConfigDict, allow_config_change: bool = False
    ) -> tuple[State, int] | None:
        """The latest state, laid out as `abstract` says, and its next batch; None if there is none.

        Raises:
          UserError: the config differs in a field that matters.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        got = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract._asdict()), meta=ocp.args.JsonRestore()
            ),
        )
        differ = changes(got.meta["config"], config.to_dict())
        if differ and not allow_config_change:
            raise UserError(
                f"{self.folder} was trained with another config ({'; '.join(differ)}); choose a new "
                "--workdir, or pass --allow_config_change"
            )
        return State(**got.state), got.meta["next_batch"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_params(folder: pathlib.Path, abstract: State) -> Params:
    """The parameters of the latest checkpoint in `folder`, without the optimizer's state.

    Raises:
      UserError: there is no checkpoint.
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
        return manager.restore(step, args=ocp.args.Composite(state=restore)).state["params"]
