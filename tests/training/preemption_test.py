"""SIGTERM at other moments than between steps."""

import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import runs

# Minutes inside one call of C code, as XLA's compiler is: a handler in Python would not run.
BUSY = """
import hashlib, sys
from coco_jax.training.preemption import Preemption
stop = Preemption().install()
print("ready", flush=True)
{what}
"""
HASH = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'


def start(what: str) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(what=what)], env=runs.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    child.send_signal(signal.SIGTERM)
    return child


def test_where_nothing_waits_to_be_saved_it_ends_at_once_even_while_compiling():
    child = start(HASH)
    _, errors = child.communicate(timeout=10)
    assert child.returncode == 0 and "nothing was lost" in errors


def test_while_steps_are_being_made_it_waits_for_them():
    child = start(
        "import time\n"
        "with stop.saving():\n"
        "    time.sleep(1.5)\n"
        "    print('saved', stop.requested, flush=True)\n"
        "stop.exit_if_saved()\n"
        "print('not reached')"
    )
    output, errors = child.communicate(timeout=20)
    assert child.returncode == 0 and output == "saved True\n" and "SIGTERM" in errors


@pytest.mark.parametrize("text", ["5", "5:", "0:3", "7:5", "a:b", "1:2:3"])
def test_profile_steps_are_written_one_way(text):
    from coco_jax.errors import UserError
    from coco_jax.training.hooks import parse_steps

    with pytest.raises(UserError, match="write FIRST:LAST"):
        parse_steps(text)
    assert parse_steps("") is None and parse_steps("3:5") == (3, 5)
