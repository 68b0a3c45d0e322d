"""The shell commands that the documentation shows, and a check of each that does not do its work."""

import contextlib
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

from absl import app, flags
from ml_collections import config_flags

from coco_jax import cli
from coco_jax.config import validate
from coco_jax.evaluation.experiment import run_configs
from coco_jax.training import preemption
from tests.helpers.runs import ROOT

PAGES = (
    "README.md", "CONTRIBUTING.md", "docs/*.md", "launch/*.md", "benchmarks/*.md",
    "tfds_builders/*/*.md",
)  # fmt: skip
# Words in capitals that stand for something; all others are parts of paths, names or addresses.
PLACEHOLDERS = {
    "COMMAND": "train",
    "CONFIG": "demo",
    "NAME/CONFIG": "video_folder/jpeg",
    "FIELD=VALUE": "seed=3",
}
PROGRAMS = (
    "coco-jax", "python", "pip", "make", "tensorboard", "tfds", "curl", "docker", "gcloud", "scancel",
    "/usr/bin/time",
)  # fmt: skip
BACKSLASH = "\\"
VARIABLES = re.compile(r"(?:[A-Z_]+=\S+ )*")


class Command(NamedTuple):
    """A command of a page."""

    page: str  # path below the repository
    line: int  # from 1
    text: str  # as it is written, without `$` and variables before it
    in_text: bool  # in a sentence, where it may be the beginning of a command

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def is_command(line: str) -> bool:
    """Whether a line begins with a program."""
    program, _, _ = VARIABLES.sub("", line.removeprefix("$ "), count=1).partition(" ")
    name = program.removeprefix(".venv/bin/")
    return name in PROGRAMS or bool(re.fullmatch(r"launch/\w+\.sh", name))


def find(page: str, text: str) -> Iterator[Command]:
    """The commands of a page, in their order.

    They are in indented or fenced blocks, perhaps on several lines, or in code within a sentence.
    """
    lines = text.splitlines()
    rest = iter(enumerate(lines, 1))
    is_fenced, variables, sentences = False, {}, []
    for number, line in rest:
        sentences.append("")
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif not is_fenced and not line.startswith("    "):
            sentences[-1] = line
        elif variable := re.fullmatch(r'\s*([A-Z]+)="(.*)"', line):
            variables[f"${variable[1]}"] = variable[2]
        elif is_command(found := line.strip()):
            while found.endswith("\\") or found.count('"') % 2:
                sentences.append("")
                found = f"{found.removesuffix(BACKSLASH).rstrip()} {next(rest)[1].strip()}"
            for name, value in variables.items():
                found = found.replace(name, value)
            for part in found.removeprefix("$ ").split(" && "):
                yield Command(page, number, VARIABLES.sub("", part, count=1), False)
    for found_at, code in _codes(sentences):
        if is_command(code):
            yield Command(page, found_at, code, True)


def flags_in_sentences(text: str) -> Iterator[tuple[int, str]]:
    """Lines and texts of code within sentences that begins with a flag."""
    inside = [line if not line.startswith("    ") else "" for line in text.splitlines()]
    return ((line, code) for line, code in _codes(inside) if code.startswith("--"))


def _codes(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    text = "\n".join(lines)
    for code in re.finditer(r"`([^`]+)`", text):
        if "\n\n" not in code[1]:
            yield text.count("\n", 0, code.start()) + 1, " ".join(code[1].split())


def of_pages() -> list[Command]:
    """The commands of all pages."""
    paths = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
    return [
        command for path in paths for command in find(str(path.relative_to(ROOT)), path.read_text())
    ]


def split(text: str) -> list[str]:
    """The words of a command, with all optional parts, without placeholders and comments.

    A last word `...` stands for what is left out.
    """
    words = shlex.split(text, comments=True)
    words = ["..." if word == "...]" else re.sub(r"^\[(.*?)\]?$", r"\1", word) for word in words]
    for placeholder, value in PLACEHOLDERS.items():
        words = [re.sub(rf"(?<![\w/]){placeholder}$", value, word) for word in words]
    return words


@contextlib.contextmanager
def commands_of(run: Callable) -> Iterator[None]:
    """Replaces absl's `app.run` by `run(main, flags_parser)`; afterwards all flags are forgotten.

    `coco_jax.cli.main`, which finds the command, and the definition of its flags are not replaced.
    """
    before, defined = set(flags.FLAGS), set()
    document = sys.modules["__main__"].__doc__

    def patched(main: Callable, flags_parser: Callable) -> None:
        defined.update(set(flags.FLAGS) - before)

        def parse(argv: list[str]) -> list[str]:
            try:
                return flags_parser(argv)
            finally:  # flags of libraries that the command imports stay
                defined.update(set(flags.FLAGS) - before)

        run(main, parse)

    with (
        mock.patch.object(app, "run", patched),
        mock.patch.object(sys, "argv", list(sys.argv)),
        mock.patch.dict(os.environ),
    ):
        try:
            yield
        finally:
            sys.modules["__main__"].__doc__ = document
            for name in defined:
                delattr(flags.FLAGS, name)


def flags_of_commands() -> dict[str, list[flags.Flag]]:
    """The flags of all commands by their names."""
    found: dict[str, list[flags.Flag]] = {}

    def collect(main: Callable, flags_parser: Callable) -> None:
        for name in flags.FLAGS:
            found.setdefault(name, []).append(flags.FLAGS[name])

    for command in cli.COMMANDS:
        with commands_of(collect):
            sys.argv[:] = ["coco-jax", command, "--help"]
            cli.main()
    return found


def check(text: str, in_text: bool = False) -> None:
    """Checks a command as far as possible without doing its work.

    Args:
      text: the command.
      in_text: it may be the beginning of a command.

    Raises:
      SystemExit: coco-jax or a module of coco_jax has refused its flags; the reason is on stderr.
      ValueError, UserError: something in the command does not exist.
    """
    words = split(text)
    program = words[0].removeprefix(".venv/bin/")
    if program == "/usr/bin/time":
        words = words[2:]
        program = words[0] if words else ""
    if len(words) < 2 and not program.startswith("launch/"):
        return  # the name of a program in a sentence
    if program == "coco-jax":
        _check_coco_jax(words[1:], in_text)
    elif program == "python":
        _check_python(words[1:], in_text)
    elif program == "pip":
        _check_pip(words[1:])
    elif program == "make":
        _call("make", "--dry-run", *words[1:])
    elif program.startswith("launch/"):
        _check_launch(words)
    elif program not in PROGRAMS:
        raise ValueError(f"unknown program {program}")


def _check_coco_jax(words: Sequence[str], in_text: bool) -> None:
    name, *arguments = words
    if name not in cli.COMMANDS:
        raise ValueError(f"coco-jax has no command {name}")
    if "--help" in arguments or (in_text and not any(word.startswith("-") for word in arguments)):
        return  # the name of a command in a sentence
    is_complete = "..." not in arguments

    def parse(main: Callable, flags_parser: Callable) -> None:
        del main
        _, *found = flags_parser(sys.argv)
        _check_values(name, found, is_complete and not in_text)

    with commands_of(parse):
        sys.argv[:] = ["coco-jax", name, *(word for word in arguments if word != "...")]
        cli.main()


def _check_values(name: str, words: Sequence[str], is_complete: bool) -> None:
    """Checks what a parser of flags does not: whole configs, names of datasets, the number of words."""
    values = flags.FLAGS
    if "config" in values:
        single = set(config_flags.get_override_values(values["config"])) & set(values.config.sweep)
        values.config.sweep.update(dict.fromkeys(single, ()))
        for config in run_configs(values.config):
            validate(config)
    if name == "sweep":
        from coco_jax.evaluation import search

        search.parse_space(values.search)
    if name == "data":
        for dataset in words:
            _check_dataset(dataset)
    if not is_complete:
        return
    if name == "index" and words[:1] not in (["build"], ["search"], ["label"]):
        raise ValueError(f"coco-jax index: {words[:1]} is no action")
    least, most = {
        "index": (2, 100), "data": (1, 100), "report": (1, 100), "compare": (2, 2), "certify": (1, 1),
        "export": (1, 1), "features": (1, 1), "predict": (0, 100),
    }.get(name, (0, 0))  # fmt: skip
    if not least <= len(words) <= most:
        raise ValueError(f"coco-jax {name}: {len(words)} words that are not flags")


def _check_dataset(name: str) -> None:
    from tfds_builders import build

    dataset, _, config = name.partition("/")
    if dataset not in build.names():
        raise ValueError(f"no dataset {dataset}")
    if config and config not in build._module(dataset).Builder.builder_configs:
        raise ValueError(f"{dataset} has no config {config}")


def _check_python(words: Sequence[str], in_text: bool) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    if words[0] != "-m":
        _check_file(words[0])
        return
    module, arguments = words[1], words[2:]
    if name := _name_of(module):
        _check_coco_jax([name, *["build"] * (name == "data"), *arguments], in_text)
    elif module == "pytest":
        for word in arguments[: arguments.index("-k") if "-k" in arguments else None]:
            _check_file(word)
    else:
        _check_file(path := module.replace(".", "/") + ".py")
        source = (ROOT / path).read_text()
        for name in re.findall(r"--(\w+)", " ".join(w.partition("=")[0] for w in arguments)):
            if not re.search(rf'(DEFINE_\w+\(\s*"|add_argument\(\s*"--){name}"', source):
                raise ValueError(f"{module} has no flag --{name}")


def _check_file(name: str) -> None:
    if not (ROOT / name).exists():
        raise ValueError(f"no file {name}")


def _check_pip(words: Sequence[str]) -> None:
    """Checks that our own package has the extras, and that a file of requirements exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    if words[0] != "install":
        raise ValueError(f"pip {words[0]}: not checked")
    for word in words[1:]:
        own = re.fullmatch(r"(?:coco_jax|\.)(?:\[([\w,-]+)\])?", word)
        for extra in (own[1] or "").split(",") if own else ():
            if extra and extra not in extras:
                raise ValueError(f"no extra {extra}")
    if "-r" in words:
        _check_file(words[words.index("-r") + 1])


def _check_launch(words: Sequence[str]) -> None:
    """Runs a script with --dry-run, and checks the flags that it gives to coco_jax.main."""
    script, *arguments = words
    if not arguments:
        _check_file(script)
        return
    end = arguments.index("--") if "--" in arguments else len(arguments)
    _call(str(ROOT / script), *arguments[:end], "--dry-run", *arguments[end:])
    of_run = arguments[end + 1 :] or [w for w in arguments if w.startswith("--config=")]
    if of_run:
        _check_coco_jax(["train", *of_run], False)


def _call(*words: str | pathlib.Path) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise ValueError(f"{shlex.join(map(str, words))}: {done.stderr.strip()}")


def run(text: str, *more: str) -> int:
    """Runs a command of coco_jax, or a file of Python, in this process.

    Args:
      text: the command.
      *more: words after it.

    Returns:
      The exit code.
    """
    words = [*(word for word in split(text) if word != "..."), *more]
    if words[0] == "python" and words[1] == "-m":
        name = _name_of(words[2])
        words = ["coco-jax", name, *["build"] * (name == "data"), *words[3:]]

    def call(main: Callable, flags_parser: Callable) -> None:
        main(flags_parser(sys.argv))

    with (
        commands_of(call),
        mock.patch("coco_jax.command.quiet"),  # it changes loggers
        mock.patch.object(preemption.Preemption, "install", lambda self: self),
    ):
        try:
            if words[0] == "coco-jax":
                sys.argv[:] = words
                cli.main()
            else:
                sys.argv[:] = words[1:]
                runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _name_of(module: str) -> str:
    """The command that a module is; empty if it is none."""
    for name, known in cli.COMMANDS.items():
        if known.module == module and not known.arguments:
            return name
    return ""
