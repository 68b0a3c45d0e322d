"""Trains and evaluates CoCo: python -m coco_jax.main --config=configs/demo.py --workdir=runs/demo."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets everyone who imports it

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from coco_jax.errors import UserError, quiet, reported

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps all that it writes.")
_MODE = flags.DEFINE_enum("mode", "both", ["train", "evaluate", "both"], "What to do.")
_ALLOW = flags.DEFINE_bool("allow_config_change", False, "Resume though the config differs.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, where several processes run ('auto' on a cluster).",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes run.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this one is.")


def parse(argv: list[str]) -> list[str]:
    """Parses flags; whatever is wrong with them is one line and exit code 2."""
    with reported("coco_jax.main"):
        try:
            left = flags.FLAGS(argv)
            if _CONFIG.value is None:
                raise UserError("--config is missing; try --config=configs/demo.py")
            _CONFIG.value.to_dict()  # a file that could not be loaded says so only when it is used
        except (flags.Error, KeyError, AttributeError, ValueError, TypeError, OSError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"{text} (fields and their meaning: coco_jax/config.py)") from error
        if not _WORKDIR.value:
            raise UserError(
                "--workdir is missing; name a folder for the run, e.g. --workdir=runs/demo"
            )
        if len(left) > 1:
            raise UserError(f"{left[1]!r} is not a flag; flags are --config, --workdir, --mode")
    return left


def runs_of(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config of every run of the sweep: ablations, then splits, then seeds."""
    sweep = [config.sweep[field] or (config[field],) for field in ("ablation", "split", "seed")]
    for ablation, split, seed in itertools.product(*sweep):
        one = config.copy_and_resolve_references()
        with one.unlocked():
            one.ablation, one.split, one.seed = ablation, str(split), int(seed)
        yield one


def run(config: ConfigDict, workdir: pathlib.Path, mode: str, allow_change: bool) -> dict[str, Any]:
    """One run in `workdir`/ABLATION/splitN/seedN: its figures, or {} where it only trained.

    A run that is finished is not done again.
    """
    import jax

    from coco_jax import sharding
    from coco_jax.checkpoint import changes, restore_params
    from coco_jax.evaluate import evaluate
    from coco_jax.results import write_json
    from coco_jax.step import make_program
    from coco_jax.task import make_task
    from coco_jax.train import train

    name = f"{config.ablation}/split{config.split}/seed{config.seed}"
    folder = workdir / name
    result = folder / "result.json"
    task = make_task(config)
    if result.exists():
        done = json.loads(result.read_text())
        differ = changes(done.pop("config"), config.to_dict())
        if not differ:
            return done
        if not allow_change:
            raise UserError(
                f"{folder} was trained with another config ({'; '.join(differ)}); choose a new "
                "--workdir, or pass --allow_config_change"
            )
    folder.mkdir(parents=True, exist_ok=True)
    first = jax.process_index() == 0
    if first:
        write_json(folder / "config.json", config.to_dict())
        (folder / "tokenizer.model").write_bytes(task.tokenizer.model)
    program = make_program(config, sharding.make_mesh(config))
    if mode == "evaluate":
        params = restore_params(folder / "checkpoints", program.abstract)
    else:
        params = train(program, task, folder, name, allow_change).params
    if mode == "train":
        return {}
    figures = evaluate(program, params, task, config.optimizer.steps)
    figures = {"ablation": config.ablation, "split": config.split, "seed": config.seed} | figures
    if first:
        write_json(result, figures | {"config": config.to_dict()})
    return figures


def main(argv: list[str]) -> None:
    """Runs the sweep of the config, then writes results.json, the table and the figures."""
    del argv
    quiet()
    import jax

    with reported("coco_jax.main"):
        workdir = pathlib.Path(_WORKDIR.value or "")
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={workdir}: {error.strerror}; choose another") from error
        if _COORDINATOR.value:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            where = (
                ()
                if _COORDINATOR.value == "auto"
                else (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
            )
            jax.distributed.initialize(*where)
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            # Runs of a sweep differ little; what one compiled serves the others.
            jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / ".compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)

        from coco_jax import figures, results

        done = [
            run(config, workdir, _MODE.value, _ALLOW.value) for config in runs_of(_CONFIG.value)
        ]
        if _MODE.value == "train" or jax.process_index():
            return
        summary = results.summarise(done, _CONFIG.value.to_dict())
        results.write_json(workdir / "results.json", summary)
        drawn = figures.draw(done, _CONFIG.value, workdir / "figures")
        unseen = len(done[0]["unseen_classes"])
        print(
            f"\n{summary['dataset']}, {unseen} unseen classes (chance {100 * summary['chance']:.1f}), "
            f"pool {summary['pool']!r}, splits {', '.join(summary['splits'])}, "
            f"seeds {', '.join(map(str, summary['seeds']))}; percent\n\n{results.table(summary)}\n"
        )
        for path in (workdir / "results.json", *drawn):
            print(path)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
