"""What a run survives: being told to stop (SIGTERM, as preemption does), and the death of a process."""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator

import jax

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
# What errors say where a process that belongs to the run has gone.
GONE = re.compile(
    r"gloo|nccl|heartbeat|coordination service|unavailable|connection (reset|closed|refused)|barrier"
    r"|deadline.exceeded|broken pipe",
    re.IGNORECASE,
)


class Preemption:
    """Whether SIGTERM came. Where nothing waits to be saved it ends the process at once, with 0.

    A handler in Python would not run while XLA compiles or a step is waited for; so a thread reads
    what the interpreter writes to a pipe as soon as a signal arrives.
    """

    def __init__(self) -> None:
        self.requested = False
        self._lock = threading.Lock()
        self._unsaved = False

    def install(self) -> "Preemption":
        """Takes over SIGTERM; only in the main thread, after `jax.distributed.initialize`."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def _watch(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                self.requested = True
                self.leave()

    def leave(self) -> None:
        """Ends the process if SIGTERM came and nothing waits to be saved."""
        with self._lock:
            if self.requested and not self._unsaved:
                print(
                    "stopped by SIGTERM; nothing was lost, the same command goes on",
                    file=sys.stderr,
                    flush=True,
                )
                _farewell.close()
                os._exit(0)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Steps are made here, and whoever makes them saves them before the process may end."""
        with self._lock:
            self._unsaved = True
        try:
            yield
        finally:
            with self._lock:
                self._unsaved = False


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Makes this process one of several; `coordinator` is host:port, or "auto" on a cluster."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The processes agree on the step to stop after by a collective of ours (train.py).
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        None if coordinator == "auto" else coordinator,
        num_processes=processes,
        process_id=process,
        heartbeat_timeout_seconds=HEARTBEAT,
    )
    _witness()


# How a process that ends by itself tells its witness so.
_farewell = contextlib.ExitStack()
atexit.register(_farewell.close)


def _witness() -> None:
    """Starts a shell that speaks where this process can no longer: when C++ code aborts it.

    Gloo and JAX's coordination service may do so where another process has died.
    """
    message = (
        f"process {jax.process_index()} of {jax.process_count()} ended without a word of its own: it "
        "was killed, or aborted as another process has died or cannot be reached. Start all of them "
        "again with the same command: the run goes on from its last checkpoint"
    )
    shell = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r end || echo "coco_jax.main: $1" >&2', "sh", message],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def say() -> None:
        with contextlib.suppress(OSError):
            assert shell.stdin is not None
            shell.stdin.write(b"it ended by itself\n")
            shell.stdin.close()
            shell.wait(5)

    _farewell.callback(say)


@contextlib.contextmanager
def among_others(program: str) -> Iterator[None]:
    """Where one of several processes fails, it ends at once and says why.

    JAX's own exit would wait for the others, who may wait for this one.
    """
    if jax.process_count() == 1:
        yield
        return
    who = f"{program}: process {jax.process_index()} of {jax.process_count()}"
    code = 1
    try:
        yield
        return
    except SystemExit as end:
        if not end.code:
            raise
        code = end.code if isinstance(end.code, int) else 1
        print(f"{who} stops; the others will too", file=sys.stderr)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if GONE.search(f"{type(error).__name__} {reason}"):
            print(
                f"{who}: another process has died or cannot be reached ({reason}); its own output "
                "says why. Start all of them again with the same command: the run goes on from its "
                "last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    _farewell.close()
    os._exit(code)
