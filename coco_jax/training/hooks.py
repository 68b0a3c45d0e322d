"""Hooks of the training loop: times of the parts of a step, the progress line, profiling."""

import math
import pathlib
import sys
import time

import jax
from ml_collections import ConfigDict

from coco_jax.errors import UserError
from coco_jax.training import chips
from coco_jax.training.step import State


class StepTimer:
    """Splits the time of a step into waiting for data, work on the host, and waiting for the device.

    `read` returns means in seconds over the steps since the last `read`.
    """

    PARTS = ("data", "host", "device")

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._steps = 0
        self._spent = dict.fromkeys(self.PARTS, 0.0)

    def lap(self, part: str) -> None:
        """Adds the time since the last call of `lap` to `part`, one of `PARTS`."""
        now = time.monotonic()
        self._spent[part] += now - self._last
        self._last = now

    def step(self) -> None:
        """Adds one to the number of steps."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Returns `seconds/step` and its parts, and resets them."""
        self.lap("host")
        parts = {f"seconds/{part}": t / max(self._steps, 1) for part, t in self._spent.items()}
        self._steps, self._spent = 0, dict.fromkeys(self.PARTS, 0.0)
        return {"seconds/step": sum(parts.values())} | parts


class Progress:
    """The progress line: step, loss, clips per second, parts of the time, MFU, remaining time."""

    def __init__(self, steps: int, first: int, config: ConfigDict, name: str):
        """Starts at step `first` of `steps`; `name` is that of the run."""
        self.steps, self.first, self.batch, self.name = steps, first, config.data.batch, name
        self.flops: float | None = None  # of a step on each device; None if its peak is unknown
        # Set at the end of the first step, which compiles: the speed does not include it.
        self._start: float | None = None

    def show(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Prints the line; returns `clips_per_second`, and `mfu` if the peak is known."""
        now = time.monotonic()
        if self._start is None:
            self._start, self.first = now, step
        speed = (step - self.first) / (now - self._start) if step > self.first else math.nan
        left = (self.steps - step) / speed if speed > 0 else math.nan
        eta = f"{left // 60:.0f}:{left % 60:02.0f}" if left == left else "--:--"
        measured = {"clips_per_second": speed * self.batch}
        total = values["seconds/step"] or math.nan
        shares = ", ".join(
            f"{part} {100 * values[f'seconds/{part}'] / total:.0f}%" for part in StepTimer.PARTS
        )
        utilisation = ""
        if self.flops is not None and speed > 0:
            mfu = chips.mfu(self.flops, 1 / speed, jax.devices()[0].device_kind)
            if mfu is not None:
                measured["mfu"] = mfu
                utilisation = f"  MFU {100 * mfu:.1f}%"
        line = (
            f"{self.name}  step {step}/{self.steps}  loss {values['loss']:.3f}  "
            f"{speed * self.batch:.0f} clips/s ({shares}){utilisation}  {eta} left"
        )
        if sys.stderr.isatty():
            end = "\n" if step == self.steps else ""
            print(f"\r\033[K{line}", end=end, file=sys.stderr, flush=True)
        elif step == self.steps or step % max(self.steps // 10, 1) == 0:
            print(line, file=sys.stderr, flush=True)
        return measured


def parse_steps(text: str) -> tuple[int, int] | None:
    """The steps to profile, first and last: `10:15` is (10, 15). None for an empty text.

    Raises:
      UserError: it is not of this form.
    """
    if not text:
        return None
    first, _, last = text.partition(":")
    if first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise UserError(f"--profile_steps={text}: write FIRST:LAST, e.g. 10:15, counted from 1")


class Profiler:
    """Traces a range of steps into `folder` for TensorBoard's profiler.

    `clu.periodic_actions.Profile` is not used because it chooses the steps itself.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
        self._steps, self._folder, self._running = steps, folder, False

    def before(self, step: int) -> None:
        """Call before step `step` (from 1) is dispatched."""
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: State) -> None:
        """Call after step `step` was dispatched."""
        if self._steps and self._running and step >= self._steps[1]:
            jax.block_until_ready(state)  # so that the trace has the whole last step
            self.close()

    def close(self) -> None:
        """Writes the trace."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            print(f"profile: tensorboard --logdir={self._folder}", file=sys.stderr)
