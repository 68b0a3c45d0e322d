"""Errors that a user can cause: one line, what is wrong, where, what to do; exit code 2."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator

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


def parser(program: str, words: bool = False) -> Callable[[list[str]], list[str]]:
    """What absl's `app.run` reads a command's flags with: a wrong one is one line and exit code 2.

    A command with a --config needs it, and needs it to load; `words` are arguments that are no flags.
    """

    def parse(argv: list[str]) -> list[str]:
        with reported(program):
            see = "see --help"
            if "config" in flags.FLAGS:
                see = "see --help; fields of --config: coco_jax/config.py"
            try:
                left = flags.FLAGS(argv)
                if "config" in flags.FLAGS:
                    if flags.FLAGS.config is None:
                        raise UserError("--config is missing; try --config=configs/demo.py")
                    flags.FLAGS.config.to_dict()  # a file that cannot load says so only when used
            except (
                flags.Error, KeyError, AttributeError, ValueError, TypeError, OSError, SyntaxError,
                ImportError,
            ) as error:  # fmt: skip
                text = str(error)
                if isinstance(error, KeyError | AttributeError):
                    text = f"no such field: {error.args[0]}"
                raise UserError(f"{' '.join(text.split())} ({see})") from error
            if len(left) > 1 and not words:
                raise UserError(f"{left[1]!r} is not a flag; see --help")
        return left

    return parse


def quiet() -> None:
    """Hides what libraries log below a warning, unless --verbosity asks for it."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        # A background thread's traceback; the error itself comes to whoever waits for the thread.
        logging.get_absl_logger().addFilter(
            lambda record: "_SignalingThread.run() raised" not in record.getMessage()
        )
