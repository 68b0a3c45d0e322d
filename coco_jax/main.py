"""Trains and evaluates CoCo: python -m coco_jax.main --config=configs/demo.py."""

import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets everyone who imports it

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from coco_jax.errors import UserError, parser, quiet, reported

if TYPE_CHECKING:
    from coco_jax.training.preemption import Preemption

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run keeps all that it writes; by default runs/CONFIG."
)
_MODE = flags.DEFINE_enum("mode", "both", ["train", "evaluate", "both"], "What to do.")
_ALLOW = flags.DEFINE_bool("allow_config_change", False, "Resume though the config differs.")
_PROFILE = flags.DEFINE_string(
    "profile_steps", "", "FIRST:LAST steps to trace for TensorBoard's profiler, e.g. 10:15."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, where several processes run ('auto' on a cluster).",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes run.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this one is.")


def runs_of(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config of every run of the sweep: ablations, then splits, then seeds."""
    sweep = [config.sweep[field] or (config[field],) for field in ("ablation", "split", "seed")]
    for ablation, split, seed in itertools.product(*sweep):
        one = config.copy_and_resolve_references()
        with one.unlocked():
            one.ablation, one.split, one.seed = ablation, str(split), int(seed)
        yield one


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    mode: str,
    allow_change: bool,
    profile_steps: str = "",
    stop: "Preemption | None" = None,
) -> dict[str, Any]:
    """One run in `workdir`/ABLATION/splitN/seedN: its figures, or {} where it only trained.

    A run that is finished is not done again.
    """
    import jax

    from coco_jax import sharding, weights
    from coco_jax.data.task import make_task
    from coco_jax.evaluation.evaluate import evaluate
    from coco_jax.evaluation.results import write_json
    from coco_jax.training.checkpoint import check_unchanged, read_json, restore_params
    from coco_jax.training.loop import parse_steps, train
    from coco_jax.training.step import make_program

    name = f"{config.ablation}/split{config.split}/seed{config.seed}"
    folder = workdir / name
    result = folder / "result.json"
    task = make_task(config)
    check_unchanged(folder, config, allow_change)
    if result.exists():
        return read_json(result)
    mesh = sharding.make_mesh(config)
    program, first = make_program(config, mesh), jax.process_index() == 0
    if mode == "evaluate":
        step, params = restore_params(folder / "checkpoints", program.abstract)
        if step != config.optimizer.steps:
            raise UserError(
                f"{folder}: training stopped at step {step} of {config.optimizer.steps}; finish it "
                "first (the same command without --mode=evaluate)"
            )
    else:
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", config.to_dict())
            (folder / "tokenizer.model").write_bytes(task.tokenizer.model)
        state = train(program, task, folder, name, parse_steps(profile_steps), stop)
        step, params = int(state.step), state.params
    if mode == "train":
        return {}
    if config.eval.interpolate:
        start = weights.load(config, program.init(jax.random.key(config.seed)).params)
        params = weights.interpolate(config, params, start)
    figures = evaluate(program, params, task, step)
    figures = {"ablation": config.ablation, "split": config.split, "seed": config.seed} | figures
    if first:
        write_json(result, figures)
    return figures


def main(argv: list[str]) -> None:
    """Runs the sweep of the config, then writes results.json, the table and the figures."""
    del argv
    quiet()
    from coco_jax.training import preemption as survive

    with reported("coco_jax.main"):
        name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / ".writable").touch()
            (workdir / ".writable").unlink()
        except OSError as error:
            raise UserError(f"--workdir={workdir}: {error.strerror}; choose another") from error
        if _COORDINATOR.value:
            if _COORDINATOR.value != "auto" and None in (_PROCESSES.value, _PROCESS.value):
                raise UserError("--coordinator needs --processes and --process as well")
            survive.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        with survive.among_others("coco_jax.main"), reported("coco_jax.main"):
            _sweep(_CONFIG.value, workdir)


def _sweep(config: ConfigDict, workdir: pathlib.Path) -> None:
    import jax

    from coco_jax.evaluation import plots as figures
    from coco_jax.evaluation import results
    from coco_jax.training import preemption as survive

    stop = survive.Preemption().install()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # Runs of a sweep differ little; what one compiled serves the others.
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / ".compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # A single value that was asked for on the command line stands in for the file's sweep.
    for field in set(config_flags.get_override_values(flags.FLAGS["config"])) & set(config.sweep):
        config.sweep[field] = ()
    done = []
    for one in runs_of(config):
        done.append(run(one, workdir, _MODE.value, _ALLOW.value, _PROFILE.value, stop))
    if _MODE.value == "train" or jax.process_index():
        return
    summary = results.summarise(done, config.to_dict())
    results.write_json(workdir / "results.json", summary)
    unseen = len(done[0]["unseen_classes"])
    print(
        f"\n{summary['dataset']}, {unseen} unseen classes (chance {100 * summary['chance']:.1f}), "
        f"pool {summary['pool']!r}, splits {', '.join(summary['splits'])}, "
        f"seeds {', '.join(map(str, summary['seeds']))}; percent\n\n{results.table(summary)}\n"
    )
    print(workdir / "results.json")
    for path in figures.draw(done, config, workdir / "figures"):
        print(path)


if __name__ == "__main__":
    app.run(main, flags_parser=parser("coco_jax.main"))
