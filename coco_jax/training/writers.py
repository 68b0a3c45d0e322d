"""Where a run writes its curves: TensorBoard, and Weights & Biases (`config.writers`)."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from coco_jax.errors import UserError
from coco_jax.training.events import EventWriter


class Writer:
    """Writes scalars to the places that `config.writers` names; in all but one process to none."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path, name: str, is_first_process: bool):
        """Opens the places.

        Raises:
          UserError: the package wandb is not installed.
        """
        uses_tensorboard = is_first_process and "tensorboard" in config.writers
        self._events = EventWriter(folder) if uses_tensorboard else None
        uses_wandb = is_first_process and "wandb" in config.writers
        self._wandb = _start_wandb(config, folder, name) if uses_wandb else None

    def write_scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes values of one step; steps must not decrease."""
        if self._events is not None:
            self._events.write_scalars(step, values)
        if self._wandb is not None:
            self._wandb.log({name: float(value) for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(config: ConfigDict, folder: pathlib.Path, name: str) -> Any:
    """A run of Weights & Biases; the same folder continues the same run."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "config.writers: 'wandb' needs the package wandb: pip install \"coco_jax[wandb]\""
        ) from error
    return wandb.init(
        project="coco_jax",
        name=name,
        id=hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16],
        resume="allow",
        dir=str(folder),
        config=config.to_dict(),
        settings=wandb.Settings(silent=True, console="off"),
    )
