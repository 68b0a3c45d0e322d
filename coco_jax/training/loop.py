"""The training loop: restores a checkpoint, runs the remaining steps, saves checkpoints."""

import collections
import contextlib
import math
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from coco_jax import weights
from coco_jax.config import training_steps
from coco_jax.data.loader import FeatureLoader, TrainLoader
from coco_jax.data.task import Task
from coco_jax.errors import DivergedError
from coco_jax.training import chips
from coco_jax.training.checkpoint import Checkpoints
from coco_jax.training.hooks import Profiler, Progress, StepTimer
from coco_jax.training.preemption import Preempted, Preemption, any_process_preempted
from coco_jax.training.seen import set_from_data
from coco_jax.training.step import Program, State, global_batch, model_flops
from coco_jax.training.text_features import with_features
from coco_jax.training.validation import Measure, Validation
from coco_jax.training.writers import Writer


def train(
    program: Program,
    task: Task,
    folder: pathlib.Path,
    name: str,
    profile_steps: tuple[int, int] | None = None,
    preemption: Preemption | None = None,
    measure: Measure | None = None,
) -> State:
    """Trains up to `config.optimizer.steps`, from the latest readable checkpoint in `folder` if any.

    Args:
      program: the compiled functions.
      task: data and texts.
      folder: for checkpoints, TensorBoard events, and a profile.
      name: of the run, for the progress line.
      profile_steps: first and last step to trace, counted from 1.
      preemption: handles SIGTERM and Ctrl-C.
      measure: evaluates parameters on validation classes, every `config.eval.every` steps.

    Returns:
      The state after the last step, which is an earlier one if training stops early.

    Raises:
      UserError: the loss is not finite, no checkpoint can be read, they are of another model, or the
        disk is full.
      Preempted: a signal was received; all processes have saved the same step.
    """
    if task.config.protocol == "frozen":  # nothing to train or to store
        return _start(program, task, folder, name)
    checkpoints = Checkpoints(folder / "checkpoints", task.config.keep_checkpoints, program)
    if (restored := checkpoints.restore()) is None:
        state, next_batch = _start(program, task, folder, name), 0
        task = with_features(task, program, state.params)
        state = state._replace(params=set_from_data(task, state.params))
    else:
        state, next_batch = restored
        task = with_features(task, program, state.params)
    if not training_steps(task.config):
        with contextlib.closing(checkpoints):
            if restored is None:
                checkpoints.save(state, task.config, 0)
        return state
    validation = None
    if measure is not None:
        validation = Validation(folder, name, program, task.config, measure)
        validation.start(int(state.step))
    loop = _Loop(program, task, folder, name, checkpoints, preemption or Preemption(), validation)
    return loop.run(state, next_batch, profile_steps)


def _start(program: Program, task: Task, folder: pathlib.Path, name: str) -> State:
    """The state at step 0, with published weights; writes parameters.txt."""
    state = program.init(jax.random.key(task.config.seed))
    state = state._replace(params=weights.load(task.config, state.params))
    if jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(state.params)
        (folder / "parameters.txt").write_text(overview + "\n")
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        removed = task.removed_descriptions
        print(
            f"{name}: {count:,} parameters ({folder}/parameters.txt), "
            f"{len(task.plan.train)} videos of {len(task.plan.seen)} seen classes"
            + f", {removed} descriptions of tested videos removed"
            * bool(removed),
            file=sys.stderr,
        )
    return state


class _DispatchedStep(NamedTuple):
    """A step whose results have not been read yet."""

    step: int
    terms: dict[str, jax.Array]
    indices: np.ndarray  # of the records in the batch
    preempted: bool | jax.Array


class _Loop:
    """The steps of one run."""

    def __init__(
        self,
        program: Program,
        task: Task,
        folder: pathlib.Path,
        name: str,
        checkpoints: Checkpoints,
        preemption: Preemption,
        validation: Validation | None,
    ):
        self.program, self.task, self.folder, self.name = program, task, folder, name
        self.checkpoints, self.preemption, self.validation = checkpoints, preemption, validation
        self.timer = StepTimer()
        self.stopping = False
        # The results of a step are read after the next one is dispatched, so that the device does not
        # wait for the host.
        self.dispatched: collections.deque[_DispatchedStep] = collections.deque()

    def run(self, state: State, next_batch: int, profile_steps: tuple[int, int] | None) -> State:
        """Runs the remaining steps and saves checkpoints."""
        task, program, config = self.task, self.program, self.task.config
        is_first_process = jax.process_index() == 0
        seen_label, steps = task.seen_label.astype(np.int32), config.optimizer.steps
        has_features = config.video_tower.kind == "features"
        loader = (FeatureLoader if has_features else TrainLoader)(
            task.dataset.records,
            task.plan.train,
            config,
            start=next_batch,
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        writer = Writer(config, self.folder, self.name, is_first_process)
        progress = Progress(steps, next_batch, config, self.name)
        profiler = Profiler(profile_steps if is_first_process else None, self.folder)
        key, first_step = jax.random.key(config.seed), int(state.step)
        with contextlib.ExitStack() as unsaved, contextlib.ExitStack() as closing:
            for resource in (self.checkpoints, writer, profiler, self.validation):
                if resource is not None:
                    closing.callback(resource.close)
            for done in range(first_step + 1, steps + 1):
                if self.validation is not None and self.validation.has_stopped:
                    break
                self.timer.lap("host")
                local = next(loader)
                self.timer.lap("data")
                batch = {
                    "video": global_batch(program.mesh, local["video"]),
                    "label": global_batch(program.mesh, seen_label[local["index"]]),
                    **task.step_texts(done - 1),
                }
                if done == first_step + 1:
                    progress.flops = _flops_per_device(config, batch)
                profiler.before(done)
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, terms = program.step(state, batch, key)
                if done == first_step + 1:
                    unsaved.enter_context(self.preemption.saving())
                profiler.after(done, state)
                preempted = any_process_preempted(program, self.preemption)
                self.dispatched.append(_DispatchedStep(done, terms, local["index"], preempted))
                self.timer.step()
                if len(self.dispatched) > 1:
                    self._read_oldest()
                if done % config.log_every == 0 or done in (first_step + 1, steps):
                    values = self._read_oldest() | self.timer.read()
                    values["broken_videos"] = _sum_over_processes(len(loader.broken))
                    if is_first_process:
                        values |= progress.show(done, values)
                    writer.write_scalars(done, values)
                if self.validation is not None and self.validation.is_due(done):
                    self._read_all()  # raises an error if a loss is not finite
                    found = self.validation.record(done, state, loader.next_batch)
                    writer.write_scalars(done, {f"validation/{k}": v for k, v in found.items()})
                self._save_if_due(state, done, loader.next_batch)
        self.preemption.exit_if_saved()
        return state

    def _save_if_due(self, state: State, done: int, next_batch: int) -> None:
        """Saves a checkpoint every `checkpoint_every` steps, after the last step, and before stopping.

        Raises:
          Preempted: a signal was received, and the checkpoint is saved.
        """
        config = self.task.config
        is_last = done == config.optimizer.steps or (
            self.validation is not None and self.validation.has_stopped
        )
        if not (done % config.checkpoint_every == 0 or is_last or self.stopping):
            return
        self._read_all()  # raises an error if a loss is not finite: such a state is not saved
        self.checkpoints.save(state, config, next_batch)
        if self.stopping and not is_last:
            if jax.process_index() == 0:
                reason = self.preemption.signal.name if self.preemption.signal else "SIGTERM"
                print(
                    f"{self.name}: stopped by {reason}; step {done} is saved: run the same command "
                    "to resume",
                    file=sys.stderr,
                )
            raise Preempted(self.preemption.exit_code)

    def _read_all(self) -> None:
        """Reads the results of all dispatched steps."""
        while self.dispatched:
            self._read_oldest()

    def _read_oldest(self) -> dict[str, float]:
        """Waits for the oldest dispatched step and returns its scalars.

        Raises:
          DivergedError: the loss or its gradient is not finite.
        """
        self.timer.lap("host")
        step, terms, indices, preempted = self.dispatched.popleft()
        values = {name: float(value) for name, value in terms.items()}
        self.stopping = self.stopping or bool(preempted)
        self.timer.lap("device")
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            ids = ", ".join(self.task.dataset.records.video_ids[i] for i in indices)
            raise DivergedError(
                f"the loss is {values['loss']}, its gradient's norm {values['gradient_norm']} at step "
                f"{step} ({self.folder}); try a lower config.optimizer.learning_rate, a longer "
                f"config.optimizer.warmup, or config.model.dtype='float32'; the batch: {ids}"
            )
        return values


def _sum_over_processes(count: int) -> int:
    if jax.process_count() == 1:
        return count
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.array(count)).sum())


def _flops_per_device(config: ConfigDict, batch: Any) -> float | None:
    """FLOPs of a step on each device; None if the peak of the device is unknown or JAX has no CPU."""
    if jax.devices()[0].device_kind not in chips.CHIPS:
        return None
    try:
        return model_flops(config, batch) / jax.device_count()
    except RuntimeError:  # JAX_PLATFORMS does not include the CPU
        return None
