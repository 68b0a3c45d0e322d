"""Kills runs at random times, restarts them, and compares the results bit for bit.

    python -m tests.helpers.kills --kills=50 --seed=0 --work_dir=/tmp/kills

First, a run is not interrupted. Then runs of the same command are killed with SIGKILL (with
--signals=both, every second time with SIGTERM) at random times between their start and their end. Each
run is restarted until it is finished, and new runs are started until --kills kills were made.

After each kill, all checkpoints that orbax lists as complete must be readable. Each finished run must
have the parameters, optimizer moments and metrics of the uninterrupted run. If not, the exit code is 1.
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
    """The reason why a checkpoint cannot be read; None if it can."""
    try:
        arrays = runs.stored(checkpoint)
        meta = json.loads((checkpoint / "meta" / "metadata").read_text())
        if int(arrays["step"]) != int(checkpoint.name) or meta["next_batch"] != int(
            checkpoint.name
        ):
            return "it has another step"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """The results of a finished run: the bytes of its last state, and its metrics."""
    arrays = runs.stored(runs.checkpoints(folder)[-1])
    return {k: x.tobytes() for k, x in arrays.items()} | {"result.json": runs.result(folder)}


def phase(child: subprocess.Popen, folder: pathlib.Path, began: int) -> str:
    """What a run was doing when it was killed, judged by its folder."""
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
    """Runs the test that the module describes.

    Args:
      kills: number of kills.
      seed: of the times of the kills.
      work_dir: folder for the runs and the log.
      data_dir: folder with motion_zsar.
      signals: "kill" or "both".
      uninterrupted: number of uninterrupted runs to compare, at least 1.

    Returns:
      Numbers of kills, in total and by phase, number of finished runs, and a list of errors.
    """
    chance = random.Random(seed)
    work_dir.mkdir(parents=True, exist_ok=True)
    config = runs.write_config(
        work_dir / "config.py", data_dir, optimizer__steps=STEPS, checkpoint_every=EVERY,
        keep_checkpoints=3,
        video_tower__dropout=0.1, ablation="full",
    )  # fmt: skip
    # A compilation cache, so that kills do not mostly happen during compilation.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(work_dir / "compiled")} | runs.environment()

    def start(run: pathlib.Path) -> subprocess.Popen:
        with (work_dir / "log.txt").open("a") as log:
            return subprocess.Popen(
                runs.command(config, run), env=environment, stdout=log, stderr=log, cwd=runs.ROOT
            )

    # The first run compiles; the length of the last one is used for the times of kills.
    for name in (*(f"whole{n}" for n in range(1, uninterrupted)), "whole"):
        began = time.monotonic()
        if start(work_dir / name).wait() != 0:
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
            if (
                folder / "result.json"
            ).exists():  # after SIGTERM the exit code is 0, but the run is not finished
                break
        got = outcome(folder)
        differ = [name for name in wanted if got.get(name) != wanted[name]]
        if differ or got.keys() != wanted.keys():
            wrong.append(f"run {ended} after {made} kills: {len(differ)} differ, e.g. {differ[:3]}")
        ended += 1
    return {"kills": made, "runs": ended, "seconds_a_run": length, **counts, "wrong": wrong}


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=pathlib.Path, required=True)
    parser.add_argument("--signals", choices=["kill", "both"], default="kill")
    parser.add_argument("--data_dir", default="data", help="folder with motion_zsar")
    flags = parser.parse_args()
    data_dir = str(pathlib.Path(flags.data_dir).absolute())
    found = play(flags.kills, flags.seed, flags.work_dir, data_dir, flags.signals)
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
