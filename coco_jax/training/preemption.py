"""Stops a run cleanly on SIGTERM, which preemption sends, and on Ctrl-C: save, then exit."""

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

# Exit codes by signal. A preempted run has done what it should: 0.
EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


class Preempted(SystemExit):
    """A signal stopped the run, and its state is saved."""


class Preemption:
    """Whether a signal has asked the process to stop. Ends it at once if there is nothing to save.

    A signal handler in Python does not run while XLA compiles or a step is waited for. So a thread
    reads the pipe to which the interpreter writes each signal as it arrives.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._lock = threading.Lock()
        self._has_unsaved_steps = False

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code for the signal that came; 0 if another process got it."""
        return EXIT_CODES.get(self.signal, 0) if self.signal else 0

    def install(self) -> "Preemption":
        """Takes over SIGTERM and SIGINT; in the main thread, after `jax.distributed.initialize`."""
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
                os._exit(EXIT_CODES[signal.SIGINT])  # a second Ctrl-C: stop without saving
            self.signal = signal.Signals(number[0])
            self.exit_if_saved()

    def exit_if_saved(self) -> None:
        """Ends the process if a signal came and no step is unsaved."""
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
        """Within the block the process does not end by itself: the caller saves its steps."""
        with self._lock:
            self._has_unsaved_steps = True
        try:
            yield
        finally:
            with self._lock:
                self._has_unsaved_steps = False


def any_process_preempted(program: Program, preemption: Preemption) -> bool | jax.Array:
    """Whether any process got a signal: the same answer at the same step in every process."""
    if jax.process_count() == 1:
        return preemption.requested
    share = program.mesh.shape["data"] * program.mesh.shape["fsdp"] // jax.process_count()
    requested = np.full(share, preemption.requested, np.int32)
    return program.any(global_batch(program.mesh, requested))
