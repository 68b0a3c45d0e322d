"""Evaluation on validation classes during training: curves, the best step, early stopping.

Test classes are never used: `data.task.validation_task` refuses splits without validation classes.
"""

import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from coco_jax import files
from coco_jax.errors import UserError
from coco_jax.training import multihost
from coco_jax.training.checkpoint import Checkpoints, read_json
from coco_jax.training.step import Params, Program, State

FILE = "validation.json"
BEST = "best"  # the folder with the checkpoint of the best step

Measure = Callable[[Params], dict[str, float]]  # the metrics on the validation classes, with "top1"


class Validation:
    """The evaluations of a run, in its validation.json, which a resumed run continues.

    A stop depends on the recorded accuracies only, so a resumed run stops at the same step.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        program: Program,
        config: ConfigDict,
        measure: Measure,
    ):
        self._folder, self._name, self._config = folder, name, config
        self._program, self._measure = program, measure
        self._best: Checkpoints | None = None
        self.history: list[dict[str, Any]] = []

    def start(self, step: int) -> None:
        """Continues after `step`: later evaluations, of a run that was killed, are dropped."""
        stored = _read(self._folder)["history"] if jax.process_index() == 0 else None
        self.history = [row for row in multihost.gather_json(stored)[0] if row["step"] <= step]
        if not self._config.eval.keep_best:
            return
        if jax.process_index() == 0:
            for path in (self._folder / BEST).glob("[0-9]*"):
                if path.name.isdigit() and int(path.name) > step:
                    shutil.rmtree(path)
        multihost_utils.sync_global_devices("later best checkpoints are removed")
        self._best = Checkpoints(self._folder / BEST, 1, self._program)

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after this step: every `config.eval.every` steps and after the last."""
        return step % self._config.eval.every == 0 or step == self._config.optimizer.steps

    def record(self, step: int, state: State, next_batch: int) -> dict[str, float]:
        """Evaluates the state and stores the result; returns the metrics."""
        metrics = self._measure(state.params)
        self.history.append({"step": step, **metrics})
        if self._best is not None and best_step(self.history) == step and self._best.latest != step:
            self._best.save(state, self._config, next_batch)
        if jax.process_index() == 0:
            content = {"history": self.history, "best_step": best_step(self.history)}
            content["stopped_early"] = self.has_stopped and step < self._config.optimizer.steps
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            files.write_bytes(self._folder / FILE, text.encode())
            if content["stopped_early"]:
                print(
                    f"{self._name}: stopped at step {step}: top-1 on the validation classes has not "
                    f"risen since step {content['best_step']}",
                    file=sys.stderr,
                )
        return metrics

    @property
    def has_stopped(self) -> bool:
        """Whether top-1 has not risen in the last `config.eval.patience` evaluations."""
        patience = self._config.eval.patience
        steps = [row["step"] for row in self.history]
        if not patience or not steps:
            return False
        return len(steps) - 1 - steps.index(best_step(self.history)) >= patience

    def close(self) -> None:
        """Waits until the best checkpoint is written."""
        if self._best is not None:
            self._best.close()


def best_step(history: list[dict[str, Any]]) -> int:
    """The first step with the highest top-1."""
    return max(history, key=lambda row: row["top1"])["step"]


def evaluated_checkpoints(folder: pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """The folder of a run whose latest checkpoint is evaluated and used for prediction."""
    return folder / (BEST if config.eval.keep_best else "checkpoints")


def last_step(folder: pathlib.Path, steps: int) -> int:
    """The last step of a run of `steps` steps: an earlier one if it stopped early."""
    stored = _read(folder)
    is_early = stored["history"] and stored.get("stopped_early") is True
    return stored["history"][-1]["step"] if is_early else steps


def _read(folder: pathlib.Path) -> dict[str, Any]:
    """The content of validation.json; its `history` is empty if there is no such file.

    Raises:
      UserError: validation.json is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {"history": []}
    stored = read_json(path)
    history = stored.get("history")
    if not isinstance(history, list) or not all(_is_row(row) for row in history):
        raise UserError(f"{path}: damaged; remove the run's folder")
    return stored


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(
        type(row.get(name)) in kinds for name, kinds in (("step", (int,)), ("top1", (int, float)))
    )
