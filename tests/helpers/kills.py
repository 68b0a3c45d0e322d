"""Kills a run at random moments, starts it again, and compares what comes out, bit for bit.

    python -m tests.helpers.kills --kills=50 --seed=0 --work_dir=/tmp/kills

A run is made without interruption. Then runs of the same command are killed (SIGKILL; --signals=both
sends SIGTERM as often) at seeded moments, anywhere from the start of the process to its end, and
started again, each until it ends; runs follow one another until so many kills were made. After each
kill every checkpoint that orbax calls finished must be readable whole, and each run that ends must have
the parameters, optimizer moments and figures of the uninterrupted one. Exit code 1 if not.
"""

import argparse
import collections
import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

from tests.helpers import runs

RUN = "full/split1/seed0"
STEPS, EVERY = 60, 1


def unreadable(checkpoint: pathlib.Path) -> str | None:
    """Why a checkpoint cannot be read whole; None where it can."""
    try:
        arrays = runs.stored(checkpoint)
        meta = json.loads((checkpoint / "meta" / "metadata").read_text())
        if int(arrays["step"]) != int(checkpoint.name) or meta["next_batch"] != int(
            checkpoint.name
        ):
            return "it is of another step"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """All that a finished run leaves: its last state's bytes and its figures."""
    arrays = runs.stored(runs.checkpoints(folder)[-1])
    return {k: x.tobytes() for k, x in arrays.items()} | {"result.json": runs.result(folder)}


def phase(child: subprocess.Popen, folder: pathlib.Path, began: int) -> str:
    """What a run was at when it was killed, as its folder tells."""
    if any((folder / "checkpoints").glob("*tmp*")):
        return "writing a checkpoint"
    last = int(runs.checkpoints(folder)[-1].name) if runs.checkpoints(folder) else 0
    if last == STEPS:
        return "evaluating"
    return "between checkpoints" if last > began else "starting"


def play(
    kills: int,
    seed: int,
    work_dir: pathlib.Path,
    data_dir: str,
    signals: str = "kill",
    uninterrupted: int = 2,
) -> dict[str, Any]:
    """Does what the module says; counts of kills by phase, runs that ended, and what was wrong."""
    chance = random.Random(seed)
    work_dir.mkdir(parents=True, exist_ok=True)
    config = runs.write_config(
        work_dir / "config.py", data_dir, optimizer__steps=STEPS, checkpoint_every=EVERY,
        keep_checkpoints=3,
        video_tower__dropout=0.1, ablation="full",
    )  # fmt: skip
    # Compiled once: a kill is to hit the run, not each time the compiler.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(work_dir / "compiled")} | runs.environment()

    def start(run: pathlib.Path) -> subprocess.Popen:
        with (work_dir / "log.txt").open("a") as log:
            return subprocess.Popen(
                runs.command(config, run), env=environment, stdout=log, stderr=log, cwd=runs.ROOT
            )

    # The first one compiles; the last one's time counts.
    for what in (*(f"whole{n}" for n in range(1, uninterrupted)), "whole"):
        began = time.monotonic()
        if start(work_dir / what).wait() != 0:
            raise SystemExit(f"the uninterrupted run failed: {work_dir}/log.txt")
        length = time.monotonic() - began
    wanted = outcome(work_dir / "whole" / RUN)
    wrong = []
    if uninterrupted > 1 and outcome(work_dir / "whole1" / RUN) != wanted:
        wrong.append("two uninterrupted runs differ")

    counts: collections.Counter[str] = collections.Counter()
    made = ended = 0
    while made < kills or ended == 0:
        workdir = work_dir / f"run{ended}"
        folder = workdir / RUN
        while True:
            at = runs.checkpoints(folder)
            child, before = start(workdir), int(at[-1].name) if at else 0
            if made < kills:
                try:
                    child.wait(chance.uniform(0, length))
                except subprocess.TimeoutExpired:
                    how = signal.SIGKILL
                    if signals == "both" and made % 2:
                        how = signal.SIGTERM
                    child.send_signal(how)
                    code = child.wait(30)
                    made += 1
                    at_work = phase(child, folder, before)
                    counts[at_work] += 1
                    allowed = {-signal.SIGKILL} if how == signal.SIGKILL else {0}
                    if at_work == "starting":  # the handler may not be installed yet
                        allowed.add(-how)
                    if code not in allowed:
                        wrong.append(f"kill {made}: exit code {code} after {how.name}")
                    for checkpoint in runs.checkpoints(folder):
                        if reason := unreadable(checkpoint):
                            wrong.append(f"kill {made}: {checkpoint}: {reason}")
                    continue
            if child.wait() != 0:
                wrong.append(f"run {ended}: exit code {child.returncode}; see {work_dir}/log.txt")
            if (folder / "result.json").exists():  # SIGTERM may end a run with 0 before its end
                break
        got = outcome(folder)
        differ = [name for name in wanted if got.get(name) != wanted[name]]
        if differ or got.keys() != wanted.keys():
            wrong.append(f"run {ended} after {made} kills: {len(differ)} differ, e.g. {differ[:3]}")
        ended += 1
    return {"kills": made, "runs": ended, "seconds_a_run": length, **counts, "wrong": wrong}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=pathlib.Path, required=True)
    parser.add_argument("--signals", choices=["kill", "both"], default="kill")
    parser.add_argument("--data_dir", default="data", help="where motion_zsar was built")
    flags = parser.parse_args()
    data_dir = str(pathlib.Path(flags.data_dir).absolute())
    found = play(flags.kills, flags.seed, flags.work_dir, data_dir, flags.signals)
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
