"""Searches hyper-parameters on validation classes: `coco-jax sweep --config=demo --search=...`."""

import os
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from coco_jax.command import keep_compiled, run_command, writable_folder
from coco_jax.errors import UserError

PROGRAM = "coco_jax.sweep"


def define_flags() -> None:
    """Defines the flags of the command."""
    config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file, or the name of a config in the package."
    )
    flags.DEFINE_string("workdir", None, "Folder of the search; runs/CONFIG-search by default.")
    flags.DEFINE_multi_string(
        "search",
        [],
        "A config field and its values: FIELD=log:LOW:HIGH, FIELD=uniform:LOW:HIGH or "
        "FIELD=choice:A,B,... Give the flag once for each field.",
    )
    flags.DEFINE_string("space", None, "A file with such fields and values, one per line.")
    flags.DEFINE_integer(
        "trials", 20, "Number of trials, with those that the search already has.", 1
    )
    flags.DEFINE_float("timeout", None, "Seconds after which no further trial begins.", 0.0)
    flags.DEFINE_integer("search_seed", 0, "Seed of the sampler.", 0)


def command(argv: list[str]) -> None:
    """Runs the search, then prints the best trial and the command that trains it."""
    del argv
    from coco_jax.evaluation import search as searches
    from coco_jax.training.preemption import Preemption

    values = flags.FLAGS
    config, overrides = values.config, config_flags.get_override_values(values["config"])
    for field in set(overrides) & set(config.sweep):  # a single value replaces the sweep
        config.sweep[field] = ()
    if overrides.get("protocol", "validation") != "validation":
        raise UserError(
            f"--config.protocol={overrides['protocol']}: a search uses validation classes only; leave "
            "it out"
        )
    config.protocol = "validation"
    specs = searches.read_space(pathlib.Path(values.space)) if values.space else []
    space = searches.parse_space(specs + values.search)
    name = pathlib.Path(config_flags.get_config_filename(values["config"])).stem
    workdir = pathlib.Path(values.workdir or f"runs/{name}-search")
    writable_folder(workdir, "--workdir")
    preemption = Preemption().install()
    keep_compiled()
    with searches.opened(config, space, workdir, values.search_seed) as search:
        for trial in search.trials:
            print(f"{line(trial)}  (done before)")
        for trial in searches.run_trials(search, values.trials, values.timeout, preemption):
            print(line(trial), flush=True)
        best, count = search.best, len(search.trials)
    print(workdir / searches.RESULTS)
    if best is None:
        raise UserError(f"{workdir}: none of the {count} trials has a result; widen the search")
    print(f"\nBest of {count} trials on validation classes:\n{line(best)}\n")
    print("Train and test it, with the splits and seeds of the config:")
    print(training_command(sys.argv[1:], best.values))


def line(trial: Any) -> str:
    """A trial in one line: its number, its accuracy in percent, its values."""
    shown = "   -" if trial.top1 is None else f"{100 * trial.top1:4.1f}"
    values = " ".join(f"{field}={_text(value)}" for field, value in trial.values.items())
    reason = f"  ({trial.reason[:200]})" if trial.reason else ""
    return f"{trial.number:4}  {shown}  {values}{reason}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def training_command(arguments: Sequence[str], values: Mapping[str, Any]) -> str:
    """The command that trains with the values that were found.

    Args:
      arguments: those of the search; its splits and seeds, which chose the values, are left out.
      values: of the fields that were searched.
    """
    words = []
    takes_next = False
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_config = argument.startswith("-") and (name == "config" or name.startswith("config."))
        field = name.removeprefix("config.")
        measured = field in ("protocol", "split", "seed") or field.startswith("sweep.")
        is_kept = is_config and not measured and field not in values
        if takes_next or is_kept:
            words.append(argument)
        takes_next = is_kept and not equals
    found = [
        f"--config.{field}={value if isinstance(value, str) else repr(value)}"
        for field, value in values.items()
    ]
    return shlex.join(["coco-jax", "train", *words, *found])


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    # The closed form's systems of equations are too small for threads, which would wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    define_flags()
    run_command(command, PROGRAM)


if __name__ == "__main__":
    main()
