"""Signals during compilation and during steps; the flag --profile_steps."""

import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import runs

# A long call of C code, like compilation by XLA: Python runs no signal handlers during the call.
BUSY = """
import hashlib, sys
from coco_jax.training.preemption import Preemption
stop = Preemption().install()
print("ready", flush=True)
{what}
"""
HASH = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'


def start(what: str, number: signal.Signals = signal.SIGTERM) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(what=what)],
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    child.send_signal(number)
    return child


def test_sigterm_with_nothing_to_save_exits_at_once_even_in_c_code():
    child = start(HASH)
    _, errors = child.communicate(timeout=10)
    assert child.returncode == 0 and "nothing was lost" in errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_with_unsaved_steps_exits_after_they_are_saved(number, code):
    child = start(
        "import time\n"
        "with stop.saving():\n"
        "    time.sleep(1.5)\n"
        "    print('saved', stop.requested, flush=True)\n"
        "stop.exit_if_saved()\n"
        "print('not reached')",
        number,
    )
    output, errors = child.communicate(timeout=20)
    assert child.returncode == code and output == "saved True\n" and number.name in errors


@pytest.mark.parametrize("text", ["5", "5:", "0:3", "7:5", "a:b", "1:2:3"])
def test_profile_steps_in_another_form_are_an_error(text):
    from coco_jax.errors import UserError
    from coco_jax.training.hooks import parse_steps

    with pytest.raises(UserError, match="write FIRST:LAST"):
        parse_steps(text)
    assert parse_steps("") is None and parse_steps("3:5") == (3, 5)
