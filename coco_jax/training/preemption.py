"""Saves a checkpoint and exits on SIGTERM, which preemption sends, and on Ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np

from coco_jax.training import multihost
from coco_jax.training.step import Program, global_batch

# Exit codes by signal. Preemption is not a failure, so its code is 0.
EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


class Preempted(SystemExit):
    """A signal stopped the run, and its state is saved."""


class Preemption:
    """Records SIGTERM and SIGINT; exits the process at once if there is nothing to save.

    Python runs no signal handler while XLA compiles or the main thread waits for a step. Therefore a
    thread reads the pipe to which the interpreter writes the number of each signal (`set_wakeup_fd`).
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._lock = threading.Lock()
        self._has_unsaved_steps = False

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code for the received signal; 0 if another process received it."""
        return EXIT_CODES.get(self.signal, 0) if self.signal else 0

    def install(self) -> "Preemption":
        """Starts handling SIGTERM and SIGINT.

        Call it in the main thread, after `jax.distributed.initialize`.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in EXIT_CODES:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def _watch(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] not in EXIT_CODES:
                continue
            if self.signal is signal.SIGINT and number[0] == signal.SIGINT:
                multihost.expected_end.close()
                os._exit(EXIT_CODES[signal.SIGINT])  # a second Ctrl-C: stop without saving
            self.signal = signal.Signals(number[0])
            self.exit_if_saved()

    def exit_if_saved(self) -> None:
        """Exits the process if a signal was received and all steps are saved."""
        with self._lock:
            if self.signal and not self._has_unsaved_steps:
                print(
                    f"stopped by {self.signal.name}; nothing was lost: run the same command to resume",
                    file=sys.stderr,
                    flush=True,
                )
                multihost.expected_end.close()
                os._exit(self.exit_code)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Within the block a signal does not exit the process: the caller saves the steps and exits."""
        with self._lock:
            self._has_unsaved_steps = True
        try:
            yield
        finally:
            with self._lock:
                self._has_unsaved_steps = False


def any_process_preempted(program: Program, preemption: Preemption) -> bool | jax.Array:
    """Whether any process received a signal; the result is the same in all processes.

    A collective: every process must call it at the same step.
    """
    if jax.process_count() == 1:
        return preemption.requested
    share = program.mesh.shape["data"] * program.mesh.shape["fsdp"] // jax.process_count()
    requested = np.full(share, preemption.requested, np.int32)
    return program.any(global_batch(program.mesh, requested))
