"""The training loop: batches in, checkpoints and metrics out, taken up where it was left."""

import collections
import contextlib
import math
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from coco_jax import weights
from coco_jax.data.loader import TrainLoader
from coco_jax.data.task import Task
from coco_jax.errors import UserError
from coco_jax.models.coco import Batch
from coco_jax.training import chips
from coco_jax.training.checkpoint import Checkpoints
from coco_jax.training.preemption import Preemption
from coco_jax.training.step import Program, State, global_batch, model_flops
from coco_jax.training.text_features import with_features


class Stopped(SystemExit):
    """SIGTERM came, and what had been learned is saved."""

    def __init__(self) -> None:
        super().__init__(0)


class Clock:
    """Where a step's time goes: waiting for data, the host's own work, waiting for the device.

    Means over the steps since they were last asked for, seconds.
    """

    PARTS = ("data", "host", "device")

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._steps = 0
        self._spent = dict.fromkeys(self.PARTS, 0.0)

    def lap(self, what: str) -> None:
        """What happened since the last call was `what`."""
        now = time.monotonic()
        self._spent[what] += now - self._last
        self._last = now

    def step(self) -> None:
        """A step is done."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """`seconds/step` and its parts; begins anew."""
        self.lap("host")
        parts = {f"seconds/{what}": t / max(self._steps, 1) for what, t in self._spent.items()}
        self._steps, self._spent = 0, dict.fromkeys(self.PARTS, 0.0)
        return {"seconds/step": sum(parts.values())} | parts


class Progress:
    """A live line: step, loss, clips a second, where the time goes, utilisation, time left."""

    def __init__(self, steps: int, first: int, config: ConfigDict, name: str):
        self.steps, self.first, self.batch, self.name = steps, first, config.data.batch, name
        # The first step compiles; the pace is measured from the end of it.
        self.began: float | None = None
        self.flops: float | None = None  # that a device needs a step, where its peak is known

    def show(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Prints the line and returns what it measured."""
        now = time.monotonic()
        if self.began is None:
            self.began, self.first = now, step
        pace = (step - self.first) / (now - self.began) if step > self.first else math.nan
        left = (self.steps - step) / pace if pace > 0 else math.nan
        eta = f"{left // 60:.0f}:{left % 60:02.0f}" if left == left else "--:--"
        measured = {"clips_per_second": pace * self.batch}
        whole = values["seconds/step"] or math.nan
        shares = ", ".join(
            f"{what} {100 * values[f'seconds/{what}'] / whole:.0f}%"
            for what in ("data", "host", "device")
        )
        used = ""
        if self.flops is not None and pace > 0:
            share = chips.mfu(self.flops, 1 / pace, jax.devices()[0].device_kind)
            if share is not None:
                measured["mfu"] = share
                used = f"  MFU {100 * share:.1f}%"
        line = (
            f"{self.name}  step {step}/{self.steps}  loss {values['loss']:.3f}  "
            f"{pace * self.batch:.0f} clips/s ({shares}){used}  {eta} left"
        )
        if sys.stderr.isatty():
            print(
                f"\r\033[K{line}",
                end="\n" if step == self.steps else "",
                file=sys.stderr,
                flush=True,
            )
        elif step == self.steps or step % max(self.steps // 10, 1) == 0:
            print(line, file=sys.stderr, flush=True)
        return measured


def parse_steps(text: str) -> tuple[int, int] | None:
    """`10:15` as (10, 15): the steps to profile, both included.

    Raises:
      UserError: it is written otherwise.
    """
    if not text:
        return None
    first, _, last = text.partition(":")
    if first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise UserError(f"--profile_steps={text}: write FIRST:LAST, e.g. 10:15, counted from 1")


class _Profile:
    """Traces the steps that were asked for into `folder`, where TensorBoard's profiler looks."""

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
        self._steps, self._folder, self._running = steps, folder, False

    def before(self, step: int) -> None:
        """Step `step` (from 1) is about to be dispatched."""
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: State) -> None:
        """Step `step` was dispatched."""
        if self._steps and self._running and step >= self._steps[1]:
            jax.block_until_ready(state)  # the device's share of the last step belongs to the trace
            self.close()

    def close(self) -> None:
        """Writes what was traced."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            print(f"profile: tensorboard --logdir={self._folder}", file=sys.stderr)


def train(
    program: Program,
    task: Task,
    folder: pathlib.Path,
    name: str,
    profile_steps: tuple[int, int] | None = None,
    stop: Preemption | None = None,
) -> State:
    """Trains to `config.optimizer.steps` in `folder`, from its latest whole checkpoint if it has one.

    Args:
      program: the compiled steps.
      task: data and texts.
      folder: takes checkpoints, TensorBoard's events, a profile.
      name: what the progress line calls the run.
      profile_steps: the first and the last step to trace, counted from 1.
      stop: what watches for SIGTERM.

    Raises:
      UserError: the loss is not finite, a checkpoint does not fit, none is whole, or the disk is full.
      Stopped: SIGTERM came; all processes have saved the same step.
    """
    from clu import metric_writers  # imports TensorFlow, which nothing else here needs

    config, first_process = task.config, jax.process_index() == 0
    stop = stop or Preemption()
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, program)
    restored = checkpoints.restore()
    key = jax.random.key(config.seed)
    if restored is None:
        state, start = program.init(key), 0
        state = state._replace(params=weights.load(config, state.params))
    else:
        state, start = restored
    if restored is None and first_process:
        overview = parameter_overview.get_parameter_overview(state.params)
        (folder / "parameters.txt").write_text(overview + "\n")
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        left_out = f", {task.left_out} descriptions of tested videos left out" * bool(task.left_out)
        print(
            f"{name}: {count:,} parameters ({folder}/parameters.txt), "
            f"{len(task.plan.train)} videos of {len(task.plan.seen)} seen classes{left_out}",
            file=sys.stderr,
        )
    task = with_features(task, program, state.params)
    steps, seen_label = config.optimizer.steps, task.seen_label.astype(np.int32)
    loader = TrainLoader(
        task.dataset.records, task.plan.train, config,
        start=start, process=jax.process_index(), processes=jax.process_count(),
    )  # fmt: skip
    writer = metric_writers.create_default_writer(str(folder), just_logging=not first_process)
    progress, clock = Progress(steps, start, config, name), Clock()
    profile = _Profile(profile_steps if first_process else None, folder)
    # One step late, so that the device never waits for the host to look at a loss.
    pending: collections.deque[_Pending] = collections.deque()
    stopping = False

    def settle() -> dict[str, float]:
        nonlocal stopping
        clock.lap("host")
        step, terms, indices, told = pending.popleft()
        values = {name: float(value) for name, value in terms.items()}
        stopping = stopping or bool(told)
        clock.lap("device")
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            ids = [task.dataset.records.video_ids[i] for i in indices]
            raise UserError(
                f"the loss is {values['loss']}, its gradient's norm {values['gradient_norm']} at "
                f"step {step} ({folder}); the batch: "
                f"{', '.join(ids)}; try a lower config.optimizer.learning_rate, a longer "
                "config.optimizer.warmup, or config.model.dtype='float32'"
            )
        return values

    first_step = int(state.step)
    with contextlib.ExitStack() as unsaved, contextlib.ExitStack() as closing:
        closing.callback(checkpoints.close)
        closing.callback(writer.close)
        closing.callback(profile.close)
        for step in range(first_step, steps):
            done = step + 1
            clock.lap("host")
            local = next(loader)
            clock.lap("data")
            labels = seen_label[local["index"]]
            batch = Batch(
                video=global_batch(program.mesh, local["video"]),
                label=global_batch(program.mesh, labels),
                **task.step_texts(step),  # type: ignore[typeddict-item]
            )
            if step == first_step:
                progress.flops = _needed(config, batch)
            profile.before(done)
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                state, terms = program.step(state, batch, key)
            if done == first_step + 1:
                unsaved.enter_context(stop.saving())  # from here on there is something to save
            profile.after(done, state)
            pending.append(
                _Pending(done, terms, local["index"], any_process_preempted(program, stop))
            )
            clock.step()
            if len(pending) > 1:
                settle()
            if done % config.log_every == 0 or done in (start + 1, steps):
                values = settle() | clock.read() | {"broken_videos": len(loader.broken)}
                if first_process:
                    values |= progress.show(done, values)
                writer.write_scalars(done, values)
            due = done % config.checkpoint_every == 0 or done == steps
            if due or stopping:
                while pending:
                    settle()  # never keep a state that is not finite
                checkpoints.save(state, config, loader.next_batch)
            if stopping and done < steps:
                if first_process:
                    print(
                        f"{name}: stopped by SIGTERM; step {done} is saved, the same command goes on",
                        file=sys.stderr,
                    )
                raise Stopped
    stop.leave()
    return state


def _needed(config: ConfigDict, batch: Batch) -> float | None:
    """FLOPs that each device needs a step; None where its peak is not known, or no CPU counts them."""
    if jax.devices()[0].device_kind not in chips.CHIPS:
        return None
    try:
        return model_flops(config, batch) / jax.device_count()
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return None


class _Pending(NamedTuple):
    """A step that was dispatched and not yet looked at."""

    step: int
    terms: dict[str, jax.Array]
    indices: np.ndarray
    told: bool | jax.Array  # whether any process was told to stop


def any_process_preempted(program: Program, stop: Preemption) -> bool | jax.Array:
    """Whether any process was told to stop: the same answer, for the same step, in all of them."""
    if jax.process_count() == 1:
        return stop.requested
    share = program.mesh.shape["data"] * program.mesh.shape["fsdp"] // jax.process_count()
    return program.any(global_batch(program.mesh, np.full(share, stop.requested, np.int32)))
