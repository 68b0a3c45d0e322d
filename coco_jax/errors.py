"""Errors that a user can cause: one line that says what is wrong, where, and what to do; exit code 2."""

import contextlib
import errno
import sys
from collections.abc import Iterator

from coco_jax.printing import printable


class UserError(Exception):
    """An error that the user can correct; the message is one line that says where and how.

    Each further argument is one more line. Line breaks inside an argument are printed as `\\n`.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class DivergedError(UserError):
    """Training gave numbers that are not finite, so a run has no result."""


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit code 2; other errors pass through."""
    try:
        yield
    except UserError as error:
        lines = map(printable, map(str, error.args))
        print(f"{program}: " + "\n".join(lines), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = printable(str(error.filename or "the disk"))
        print(
            f"{program}: {where}: {error.strerror}; free some space, then run the same command again",
            file=sys.stderr,
        )
        sys.exit(2)
