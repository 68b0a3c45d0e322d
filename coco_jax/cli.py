"""The console command coco-jax: one name for all commands."""

import difflib
import importlib.util
import runpy
import sys
from typing import NamedTuple

from coco_jax.printing import output_may_close


class Command(NamedTuple):
    """A command: the module that runs it, fixed arguments, an example, and what it needs installed."""

    module: str
    about: str
    example: str
    arguments: tuple[str, ...] = ()
    needs: str = ""  # a package that only `extra` brings
    extra: str = ""


COMMANDS = {
    "predict": Command(
        "coco_jax.predict",
        "name the actions in your own videos",
        'coco-jax predict a.mp4 --actions="juggling, rope skipping"',
    ),
    "index": Command(
        "coco_jax.index",
        "embed an archive of videos once, and search it later",
        "coco-jax index build FOLDER --output=INDEX; coco-jax index search INDEX juggling",
    ),
    "export": Command(
        "coco_jax.export",
        "write a model for programs without coco_jax: StableHLO or ONNX",
        'coco-jax export pretrained --format=onnx --actions="juggling, archery" --output=FOLDER',
    ),
    "features": Command(
        "coco_jax.features",
        "extract features of a folder of videos, to train on",
        "coco-jax features FOLDER --output=features/i3d.npz --labels",
    ),
    "train": Command(
        "coco_jax.main",
        "train and evaluate the runs of a config",
        "coco-jax train --config=demo --workdir=runs/motion",
        needs="clu",
        extra="train",
    ),
    "evaluate": Command(
        "coco_jax.main",
        "evaluate trained runs",
        "coco-jax evaluate --config=demo --workdir=runs/motion",
        arguments=("--mode=evaluate",),
        needs="clu",
        extra="train",
    ),
    "compare": Command(
        "coco_jax.compare",
        "say what differs between two runs, then compare their numbers",
        "coco-jax compare runs/a runs/b",
    ),
    "certify": Command(
        "coco_jax.certify",
        "check the evidence of an evaluated run, or write it",
        "coco-jax certify runs/motion/full/split1/seed0",
        needs="clu",
        extra="train",
    ),
    "sweep": Command(
        "coco_jax.sweep",
        "search hyper-parameters on validation classes",
        "coco-jax sweep --config=demo --config.ablation=full --search=model.tau=log:0.01:1",
        needs="optuna",
        extra="sweep",
    ),
    "data": Command(
        "tfds_builders.build",
        "build datasets",
        "coco-jax data build motion_zsar actionhub/motion --data_dir=data",
        needs="tensorflow_datasets",
        extra="datasets",
    ),
    "report": Command(
        "coco_jax.report",
        "write a report of finished runs: one HTML file",
        "coco-jax report runs/motion --output=report.html",
    ),
    "serve": Command(
        "coco_jax.serve",
        "a page and a JSON endpoint for uploaded videos",
        "coco-jax serve",
        needs="gradio",
        extra="serve",
    ),
    "compile": Command(
        "coco_jax.compile",
        "estimate memory and time on TPUs or GPUs that you do not have",
        "coco-jax compile --config=k400_zsar --topology=v5e:16x16",
        needs="clu",
        extra="compile",
    ),
}


def usage() -> str:
    """What `coco-jax --help` prints."""
    lines = [
        "coco-jax: zero-shot action recognition with CoCo and ActionHub (arXiv 2401.11654)",
        "",
        "usage: coco-jax COMMAND [--flag=value ...]; coco-jax COMMAND --help lists the flags",
        "",
    ]
    for name, command in COMMANDS.items():
        lines += [f"  {name:9} {command.about}", f"            {command.example}", ""]
    lines.append("Each command is also a module, for example python -m coco_jax.predict.")
    return "\n".join(lines)


def main() -> None:
    """Runs the command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        with output_may_close():
            print(usage())
        return
    if name == "--version":
        from coco_jax.version import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        _fail(f"there is no command {name!r}; {hint}commands: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if command.needs and not importlib.util.find_spec(command.needs):
        _fail(f'coco-jax {name} needs more packages: pip install "coco_jax[{command.extra}]"')
    if name == "data":
        if arguments[:1] == ["build"]:
            arguments = arguments[1:]
        elif not arguments or not arguments[0].startswith("-"):
            _fail(f"say what to do with the data, e.g. {command.example}")
    sys.argv = [f"coco-jax {name}", *command.arguments, *arguments]
    runpy.run_module(command.module, run_name="__main__", alter_sys=False)


def _fail(message: str) -> None:
    print(f"coco-jax: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
