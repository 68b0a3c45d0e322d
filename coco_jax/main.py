"""Trains and evaluates CoCo: python -m coco_jax.main --config=configs/demo.py."""

import json
import os
import pathlib
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from coco_jax import files
from coco_jax.command import keep_compiled, run_command, writable_folder
from coco_jax.config import FREE, changes
from coco_jax.errors import UserError, reported

PROGRAM = "coco_jax.main"


def define_flags() -> None:
    """Defines the flags of the command."""
    config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file, or the name of a config in the package."
    )
    flags.DEFINE_string("workdir", None, "Folder for all outputs; runs/CONFIG by default.")
    flags.DEFINE_enum("mode", "both", ["train", "evaluate", "both"], "Train, evaluate, or both.")
    flags.DEFINE_bool("allow_config_change", False, "Resume a run whose config has changed.")
    flags.DEFINE_string(
        "profile_steps", "", "FIRST:LAST steps to trace for TensorBoard's profiler, e.g. 10:15."
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of process 0 if several processes run, or 'auto' on a cluster.",
    )
    flags.DEFINE_integer("processes", None, "Number of processes.")
    flags.DEFINE_integer("process", None, "Index of this process, from 0.")


def command(argv: list[str]) -> None:
    """Runs the sweep of the config, then writes results.json, a table and plots."""
    del argv
    from coco_jax.training import multihost

    values = flags.FLAGS
    # A single value on the command line replaces the sweep in the config file.
    for field in set(config_flags.get_override_values(values["config"])) & set(values.config.sweep):
        values.config.sweep[field] = ()
    workdir = _workdir(values.workdir, values.config)
    if values.coordinator:
        if values.coordinator != "auto" and None in (values.processes, values.process):
            raise UserError("--coordinator needs --processes and --process as well")
        multihost.join(values.coordinator, values.processes, values.process)
    with multihost.stop_all_on_failure(PROGRAM), reported(multihost.name_of(PROGRAM)):
        _sweep(values.config, workdir)


def _workdir(given: str | None, config: ConfigDict) -> pathlib.Path:
    """The folder for outputs.

    Raises:
      UserError: it is not writable, or it is the default folder and has results of another config.
    """
    path, _, parameter = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = "-".join([pathlib.Path(path).stem, *re.findall(r"[\w.]+", parameter)])
    workdir = pathlib.Path(given or f"runs/{name}")
    writable_folder(workdir, "--workdir")
    results = workdir / "results.json"
    if given or not results.exists():
        return workdir
    try:
        stored = json.loads(files.read_text(results))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{results}: cannot be read ({error}); remove it") from error
    # A single run does not depend on the sweep, but results.json does.
    if differ := changes(stored, config.to_dict(), [field for field in FREE if field != "sweep."]):
        raise UserError(
            f"{workdir} has the results of another config ({'; '.join(differ)}); choose another folder "
            "with --workdir, so that they are not replaced"
        )
    return workdir


def _sweep(config: ConfigDict, workdir: pathlib.Path) -> None:
    import jax

    from coco_jax.evaluation import evidence, plots, results
    from coco_jax.evaluation.experiment import run, run_configs, run_name
    from coco_jax.training.hooks import parse_steps
    from coco_jax.training.preemption import Preemption

    values = flags.FLAGS
    profile_steps = parse_steps(values.profile_steps)
    preemption = Preemption().install()
    keep_compiled()
    runs = [
        run(run_config, workdir, values.mode, values.allow_config_change, profile_steps, preemption)
        for run_config in run_configs(config)
    ]
    if values.mode == "train" or jax.process_index():
        return
    summary = results.summarise(runs, config.to_dict())
    results.write_json(workdir / "results.json", summary)
    evidence.write_sweep(workdir, [run_name(one) for one in run_configs(config)], summary)
    print(f"\n{results.heading(summary)}\n\n{results.table(summary)}\n")
    print(workdir / "results.json")
    for path in plots.draw(runs, config, workdir / "plots"):
        print(path)
    print(f"tensorboard --logdir={workdir}")


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    # The closed form's systems of equations are too small for threads, which would wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    define_flags()
    run_command(command, PROGRAM)


if __name__ == "__main__":
    main()
