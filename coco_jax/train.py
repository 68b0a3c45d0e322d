"""The training loop: batches in, checkpoints and metrics out, taken up where it was left."""

import collections
import math
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from coco_jax import weights
from coco_jax.checkpoint import Checkpoints
from coco_jax.data.loader import TrainLoader
from coco_jax.errors import UserError
from coco_jax.frozen import with_features
from coco_jax.models.coco import Batch
from coco_jax.step import Program, State, global_batch
from coco_jax.task import Task


class Progress:
    """A live line: step, loss, clips a second, time left."""

    def __init__(self, steps: int, first: int, batch: int, name: str):
        self.steps, self.first, self.batch, self.name = steps, first, batch, name
        # The first step compiles; the pace is measured from the end of it.
        self.began: float | None = None

    def show(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Prints the line and returns what it measured."""
        now = time.monotonic()
        if self.began is None:
            self.began, self.first = now, step
        pace = (step - self.first) / (now - self.began) if step > self.first else math.nan
        left = (self.steps - step) / pace if pace > 0 else math.nan
        eta = f"{left // 60:.0f}:{left % 60:02.0f}" if left == left else "--:--"
        line = (
            f"{self.name}  step {step}/{self.steps}  loss {values['loss']:.3f}  "
            f"{pace * self.batch:.0f} clips/s  {eta} left"
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
        return {"clips_per_second": pace * self.batch}


def train(program: Program, task: Task, folder: pathlib.Path, name: str) -> State:
    """Trains to `config.optimizer.steps` in `folder`, from its latest checkpoint if it has one.

    Raises:
      UserError: the loss is not finite, or a checkpoint is damaged or does not fit.
    """
    from clu import metric_writers  # imports TensorFlow, which nothing else here needs

    config, first_process = task.config, jax.process_index() == 0
    checkpoints = Checkpoints(folder / "checkpoints", config.keep)
    restored = checkpoints.restore(program.abstract)
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
    progress = Progress(steps, start, config.data.batch, name)
    # One step late, so that the device never waits for the host to look at a loss.
    pending: collections.deque[tuple[int, Any, np.ndarray]] = collections.deque()

    def settle() -> dict[str, float]:
        step, terms, indices = pending.popleft()
        values = {name: float(value) for name, value in terms.items()}
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            ids = [task.dataset.records.video_ids[i] for i in indices]
            raise UserError(
                f"the loss is {values['loss']}, its gradient's norm {values['gradient_norm']} at "
                f"step {step} ({folder}); the batch: "
                f"{', '.join(ids)}; try a lower config.optimizer.rate, a longer "
                "config.optimizer.warmup, or config.model.dtype='float32'"
            )
        return values | {"step": step}

    try:
        for step in range(int(state.step), steps):
            local = next(loader)
            labels = seen_label[local["index"]]
            batch = Batch(
                video=global_batch(program.mesh, local["video"]),
                label=global_batch(program.mesh, labels),
                **task.step_texts(step),  # type: ignore[typeddict-item]
            )
            state, terms = program.step(state, batch, key)
            pending.append((step + 1, terms, local["index"]))
            if len(pending) > 1:
                settle()
            done = step + 1
            if done % config.log_every == 0 or done in (start + 1, steps):
                values = settle()
                del values["step"]
                if first_process:
                    values |= progress.show(done, values)
                writer.write_scalars(done, values)
            if done % config.checkpoint_every == 0 or done == steps:
                while pending:
                    settle()  # never keep a state that is not finite
                checkpoints.save(state, config, loader.next_batch)
    finally:
        writer.close()
        checkpoints.close()
    return state
