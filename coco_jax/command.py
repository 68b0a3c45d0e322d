"""What the commands share: flags, packaged configs, one-line errors, quiet libraries."""

import difflib
import gc
import importlib.util
import logging as std_logging
import os
import pathlib
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from coco_jax.config import default, flatten, no_such_field
from coco_jax.errors import UserError, reported
from coco_jax.files import cache_folder
from coco_jax.printing import output_may_close, printable

COMPILED_BYTES = 1 << 30  # of compiled programs; those that were not used for longest are removed
SOME_FAILED = 3  # the exit code if some videos could not be read


def run_command(
    command: Callable[[list[str]], None], program: str, *, accepts_words: bool = False
) -> None:
    """Runs a command with absl: reads its flags, hides library noise, reports errors in one line.

    Exit code 2 after a `UserError`, 130 after Ctrl-C.

    Args:
      command: takes the arguments that are not flags.
      program: its name in messages.
      accepts_words: whether arguments that are not flags are allowed.
    """

    def quiet_command(argv: list[str]) -> None:
        quiet()
        with reported(program):
            command(argv)

    # By default Python looks for garbage after every 700 new objects. Imports and JAX's tracing make
    # millions that stay: without this, `coco-jax predict` takes about half a second longer.
    gc.set_threshold(50_000)
    # absl prints this text for --help, also if the console script is the main module.
    sys.modules["__main__"].__doc__ = command.__globals__["__doc__"]
    with output_may_close():
        try:
            app.run(quiet_command, flags_parser=parser(program, accepts_words))
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr)
            sys.exit(130)


def report_unreadable(unreadable: Sequence[tuple[str, str]], count: int) -> None:
    """Prints the names and reasons of unreadable videos, and exits with `SOME_FAILED` if there are any.

    Args:
      unreadable: names and reasons.
      count: of all videos.
    """
    for name, reason in unreadable:
        print(f"{printable(name)}: {printable(reason)}", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable)} of {count} videos could not be read", file=sys.stderr)
        sys.exit(SOME_FAILED)


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, or where $JAX_COMPILATION_CACHE_DIR says.

    They are machine code. So they are not kept in the folder of a run, which may come from others, nor
    in a folder to which others can write.

    Programs for several devices of a CPU are not kept. If XLA has read one from a file, its collectives
    may run in another order on each device: the devices wait for each other, and XLA ends the process
    (seen with jax 0.10.2).
    """
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:  # a read-only home
        return
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # A program that cannot be read or stored, e.g. on a full disk, is compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


def writable_folder(folder: pathlib.Path, flag: str) -> None:
    """Makes a folder and checks that files can be written there.

    Raises:
      UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag}={folder}: {error.strerror}; choose another folder") from error


def beam_options(text: str) -> Any:
    """The options of a pipeline of Apache Beam from a flag, "a=b,c".

    Raises:
      UserError: Apache Beam is not installed.
    """
    try:
        from apache_beam.options import pipeline_options
    except ImportError as error:
        raise UserError(
            '--beam_pipeline_options needs Apache Beam: pip install "coco_jax[beam]"'
        ) from error
    return pipeline_options.PipelineOptions(
        [f"--{o.strip()}" for o in text.split(",") if o.strip()]
    )


def parser(program: str, accepts_words: bool = False) -> Callable[[list[str]], list[str]]:
    """A flags parser for absl's `app.run`: a wrong flag is one line and exit code 2.

    A command with a --config needs one, by the path of a file or by the name of a packaged config.
    """

    def parse(argv: list[str]) -> list[str]:
        with reported(program):
            has_config = "config" in flags.FLAGS
            if has_config:
                argv = _find_config(argv)
            try:
                words = flags.FLAGS(argv)
                if has_config and flags.FLAGS.config is not None:
                    flags.FLAGS.config.to_dict()  # absl reads the file and overrides lazily
            except SystemExit:  # of --help, for which absl has exit code 1
                sys.exit(0)
            except flags.Error as error:
                raise UserError(f"{' '.join(str(error).split())} (see --help)") from error
            except (KeyError, AttributeError) as error:
                overrides = re.findall(r"^--?config\.([\w.]+)", "\n".join(argv), re.MULTILINE)
                known = flatten(default().to_dict())
                unknown = [field for field in overrides if field not in known]
                raise UserError(no_such_field((unknown or overrides or [str(error)])[0])) from error
            except (ValueError, TypeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"--config: {reason} (fields: coco_jax/config.py)") from error
            if has_config and flags.FLAGS.config is None:
                raise UserError("--config is missing; try --config=demo")
            if len(words) > 1 and not accepts_words:
                raise UserError(f"{words[1]!r} is not a flag; see --help")
        return words

    return parse


def packaged_configs() -> dict[str, pathlib.Path]:
    """The configs that come with the package, by name."""
    spec = importlib.util.find_spec("coco_jax.configs")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = (file for folder in folders for file in pathlib.Path(folder).glob("*.py"))
    return {file.stem: file for file in sorted(files) if file.stem != "__init__"}


def _find_config(argv: list[str]) -> list[str]:
    """The arguments with the path of a config in place of its name; checks that the file loads.

    Raises:
      UserError: there is no such config, or it does not load.
    """
    argv = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals:
            i, value = i + 1, argv[i + 1] if i + 1 < len(argv) else ""
        name, colon, parameter = value.partition(":")
        packaged = packaged_configs()
        if not pathlib.Path(name).is_file():
            bare = name.removeprefix("configs/").removesuffix(".py")
            if bare not in packaged:
                near = difflib.get_close_matches(bare, packaged, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(
                    f"--config={value}: neither a file nor a config of the package; {hint}the package "
                    f"has {', '.join(packaged)}"
                )
            name = str(packaged[bare])
        _check_config_file(name, parameter)
        argv[i] = f"{flag}={name}{colon}{parameter}" if equals else f"{name}{colon}{parameter}"
        break
    return argv


def _check_config_file(path: str, parameter: str) -> None:
    """Runs the user's config file once, so that its own errors are reported as such.

    Raises:
      UserError: it raises an error, or gives no ConfigDict.
    """
    spec = importlib.util.spec_from_file_location("checked_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path}: not a Python file")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config(*filter(None, [parameter])) if get_config else None
    except Exception as error:  # the file is the user's code and may raise anything
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"--config: {path}:{lines[-1] if lines else 1}: {type(error).__name__}: {message}"
        ) from error
    if get_config is None:
        raise UserError(f"--config: {path}:1: has no function get_config")
    if not isinstance(config, ConfigDict):
        line = getattr(getattr(get_config, "__code__", None), "co_firstlineno", 1)
        kind = type(config).__name__
        raise UserError(f"--config: {path}:{line}: get_config() returns a {kind}, not a ConfigDict")


def quiet() -> None:
    """Hides banners and messages of libraries below a warning, unless --verbosity is given."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # retries; the last error is raised
        # TensorFlow only reads and writes files here; without oneDNN it prints no banner about it.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        # Tracebacks that orbax logs; the errors themselves are also raised in the main thread.
        for logger in (logging.get_absl_logger(), std_logging.getLogger("asyncio")):
            logger.addFilter(lambda record: not _is_raised_too(record))
        sys.unraisablehook = _unraisable


def _is_raised_too(record: std_logging.LogRecord) -> bool:
    """Whether a message of orbax, or of a task of it, is about an exception."""
    files = [record.pathname]
    if record.name == "asyncio" and record.exc_info and record.exc_info[2]:
        files += [frame.filename for frame in traceback.extract_tb(record.exc_info[2])]
    is_error = bool(record.exc_info) or "_SignalingThread.run() raised" in record.getMessage()
    return is_error and any("orbax" in pathlib.Path(file).parts for file in files)


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Hides an error of orbax: if it cannot read one array, it stops waiting for those that follow."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)
