"""Errors that a user can cause: one line, what is wrong, where, what to do; exit code 2."""

import contextlib
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


def quiet() -> None:
    """Hides what libraries log below a warning, unless --verbosity asks for it."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
