"""Errors that a user can cause: one line, what is wrong, where, what to do; exit code 2."""

import contextlib
import errno
import sys
from collections.abc import Iterator

from absl import flags, logging


class UserError(Exception):
    """Something the user can mend; its message is one line naming the place and the remedy."""


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit code 2; other errors pass through."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the disk"
        print(
            f"{program}: {where}: {error.strerror}; make room, then give the same command again",
            file=sys.stderr,
        )
        sys.exit(2)


def quiet() -> None:
    """Hides what libraries log below a warning, unless --verbosity asks for it."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        # A background thread's traceback; the error itself comes to whoever waits for the thread.
        logging.get_absl_logger().addFilter(
            lambda record: "_SignalingThread.run() raised" not in record.getMessage()
        )
