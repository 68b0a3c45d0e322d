"""Runs of several processes: joining them, and ending all of them when one fails."""

import atexit
import contextlib
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator

import jax

HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as dead
# Words in error messages that mean another process is gone.
PEER_FAILURE = re.compile(
    r"gloo|nccl|heartbeat|coordination service|unavailable|connection (reset|closed|refused)|barrier"
    r"|deadline.exceeded|broken pipe",
    re.IGNORECASE,
)


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Makes this process one of several; `coordinator` is host:port, or "auto" on a cluster."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The processes agree on the step to stop at with a collective of ours (preemption.py).
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        None if coordinator == "auto" else coordinator,
        num_processes=processes,
        process_id=process,
        heartbeat_timeout_seconds=HEARTBEAT,
    )
    _start_watcher()


# Closing it tells the watcher that this process ends by itself.
expected_end = contextlib.ExitStack()
atexit.register(expected_end.close)


def _start_watcher() -> None:
    """Starts a shell that prints a message if this process ends without one.

    Gloo and JAX's coordination service may abort it in C++ when another process has died.
    """
    message = (
        f"process {jax.process_index()} of {jax.process_count()} ended without a message: it was "
        "killed, or aborted because another process has died or cannot be reached. Start all of them "
        "again with the same command: the run resumes from its last checkpoint"
    )
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r end || echo "coco_jax.main: $1" >&2', "sh", message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )

    def report_expected_end() -> None:
        with contextlib.suppress(OSError):
            assert watcher.stdin is not None
            watcher.stdin.write(b"expected\n")
            watcher.stdin.close()
            watcher.wait(5)

    expected_end.callback(report_expected_end)


@contextlib.contextmanager
def stop_all_on_failure(program: str) -> Iterator[None]:
    """Ends this process at once, with the reason, if it fails as one of several.

    JAX's own exit would wait for the other processes, which may wait for this one.
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
    except Exception as error:  # printed below, then the process ends: nothing is hidden
        reason = " ".join(str(error).split())[:200]
        if PEER_FAILURE.search(f"{type(error).__name__} {reason}"):
            print(
                f"{who}: another process has died or cannot be reached ({reason}); its own output "
                "says why. Start all of them again with the same command: the run resumes from its "
                "last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    expected_end.close()
    os._exit(code)
