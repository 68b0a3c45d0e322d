"""Kills runs at random times, restarts them, and compares the results bit for bit.

    python -m tests.helpers.kills --kills=50 --processes=2 --work_dir=/tmp/kills

First, a run is not interrupted. Then runs of the same command are killed with SIGKILL (with
--signals=both, every second time with SIGTERM) at random times between their start and their end. Each
run is restarted until it is finished, and new runs are started until --kills kills were made. The text
tower is frozen, and each run begins without cached text features. If a run has several processes, all of
them or one is killed; in the latter case the others must end within `MINUTE`.

After each kill, all checkpoints that orbax lists as complete must be readable. Each finished run must
have the parameters, optimizer moments and metrics of the uninterrupted run, and no temporary files. If
not, the exit code is 1.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from tests.helpers import runs

RUN = "full/split1/seed0"
STEPS, EVERY = 60, 1
KEEP = 3  # checkpoints
MINUTE = 60  # seconds
SOON = 0.3
# All that a finished run leaves in its workdir.
FILES = re.compile(
    r"results\.json|evidence\.json|plots/\w+\.png|\S+/seed0/(config\.json|tokenizer\.model"
    r"|parameters\.txt|result\.json|evidence\.json|details\.json|predictions\.csv"
    r"|events\.out\.tfevents\.[\w.-]+|checkpoints/\d+/\S+)"
)


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


def phase(folder: pathlib.Path, began: int) -> str:
    """What a run was doing when it was killed, judged by its folder."""
    if any((folder / "checkpoints").glob("*tmp*")):
        return "writing a checkpoint"
    last = int(runs.checkpoints(folder)[-1].name) if runs.checkpoints(folder) else 0
    if last == STEPS:
        return "evaluating"
    return "between checkpoints" if last > began else "starting"


def litter(workdir: pathlib.Path, data_dir: pathlib.Path) -> list[str]:
    """Files that a finished run should not leave."""
    names = [str(p.relative_to(workdir)) for p in workdir.rglob("*") if not p.is_dir()]
    found = [name for name in names if not FILES.fullmatch(name)]
    cached = [*(data_dir / "text_features").rglob("*"), *(data_dir / "tokenizers").rglob("*")]
    return found + [str(p) for p in cached if re.search(r"partial|tmp|old", p.name)]


def own_data(data_dir: str, work_dir: pathlib.Path) -> pathlib.Path:
    """A data_dir with the same datasets, but without cached tokenizers and text features."""
    folder = work_dir / "data"
    folder.mkdir(exist_ok=True)
    for name in ("motion_zsar", "actionhub"):
        (folder / name).symlink_to(pathlib.Path(data_dir).absolute() / name)
    return folder


class Run:
    """Starts the processes of a run and waits for them."""

    def __init__(self, config: pathlib.Path, work_dir: pathlib.Path, processes: int):
        self.config, self.work_dir, self.processes = config, work_dir, processes
        # A compilation cache, so that kills do not mostly happen during compilation.
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(work_dir / "compiled")}
        self.environment = compiled | runs.environment()

    def start(self, workdir: pathlib.Path) -> list[subprocess.Popen]:
        """Starts all processes."""
        flags: tuple[str, ...] = ()
        if self.processes > 1:
            port = runs.free_port()
            flags = (f"--coordinator=127.0.0.1:{port}", f"--processes={self.processes}")
        with (self.work_dir / "log.txt").open("a") as log:
            return [
                subprocess.Popen(
                    runs.command(
                        self.config, workdir, *flags, *([f"--process={i}"] if flags else [])
                    ),
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    cwd=runs.ROOT,
                )
                for i in range(self.processes)
            ]

    def whole(self, workdir: pathlib.Path) -> float:
        """Runs without interruption; returns the seconds that it took."""
        began = time.monotonic()
        if any([child.wait() for child in self.start(workdir)]):
            raise SystemExit(f"the uninterrupted run failed: {self.work_dir}/log.txt")
        return time.monotonic() - began


def wait_for(checkpoint: pathlib.Path, child: subprocess.Popen) -> None:
    """Waits until a checkpoint is complete, or the process has ended."""
    while not checkpoint.is_dir() and child.poll() is None:
        time.sleep(0.02)


def kill(
    children: list[subprocess.Popen], how: signal.Signals, chance: random.Random
) -> tuple[list[int], list[int | None], float]:
    """Sends a signal to all processes or to one; waits until all have ended.

    Returns:
      The exit codes of those that got the signal, those of the others, None instead of the code of a
      process that did not end within `MINUTE`, and the seconds until the last one ended.
    """
    victims = children if chance.random() < 0.5 else [chance.choice(children)]
    for child in victims:
        child.send_signal(how)
    began = time.monotonic()
    codes: dict[bool, list[Any]] = {True: [], False: []}
    for child in children:
        try:
            code: int | None = child.wait(max(began + MINUTE - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            code = None
            child.kill()
            child.wait()
        codes[child in victims].append(code)
    return codes[True], codes[False], time.monotonic() - began


def play(
    kills: int,
    seed: int,
    work_dir: pathlib.Path,
    data_dir: str,
    signals: str = "kill",
    uninterrupted: int = 2,
    processes: int = 1,
    after: int | None = None,
) -> dict[str, Any]:
    """Runs the test that the module describes.

    Args:
      kills: number of kills.
      seed: of the times of the kills.
      work_dir: folder for the runs and the log; it must be new or empty.
      data_dir: folder with motion_zsar.
      signals: "kill" or "both".
      uninterrupted: number of uninterrupted runs to compare, at least 1.
      processes: number of processes of each run.
      after: kill within `SOON` after the checkpoint of this step, so that the run is resumed from a
        checkpoint and not started again; by default, at any time.

    Returns:
      Numbers of kills, in total and by phase, number of finished runs, the longest time in which the
      others ended after one process was killed, and a list of errors.
    """
    chance = random.Random(seed)
    work_dir.mkdir(parents=True, exist_ok=True)
    data = own_data(data_dir, work_dir)
    config = runs.write_config(
        work_dir / "config.py", str(data), optimizer__steps=STEPS, checkpoint_every=EVERY,
        keep_checkpoints=KEEP, video_tower__dropout=0.1, video_tower__temporal="mean",
        text_tower__trainable="none", ablation="full",
    )  # fmt: skip
    run = Run(config, work_dir, processes)
    # The first run compiles; the length of the last one is used for the times of kills.
    for name in (*(f"whole{n}" for n in range(1, uninterrupted)), "whole"):
        shutil.rmtree(data / "text_features", ignore_errors=True)
        length = run.whole(work_dir / name)
    wanted = outcome(work_dir / "whole" / RUN)
    wrong = [f"a run without kills left {name}" for name in litter(work_dir / "whole", data)]
    if uninterrupted > 1 and outcome(work_dir / "whole1" / RUN) != wanted:
        wrong.append("two uninterrupted runs differ")

    counts: collections.Counter[str] = collections.Counter()
    made = ended = 0
    longest = 0.0
    while (made < kills or ended == 0) and not wrong:
        workdir = work_dir / f"run{ended}"
        folder = workdir / RUN
        shutil.rmtree(data / "text_features", ignore_errors=True)
        while not (folder / "result.json").exists() and not wrong:
            at = runs.checkpoints(folder)
            children, before = run.start(workdir), int(at[-1].name) if at else 0
            if made < kills:
                try:
                    if after is not None:
                        wait_for(folder / "checkpoints" / str(after), children[0])
                    children[0].wait(chance.uniform(0, length if after is None else SOON))
                except subprocess.TimeoutExpired:
                    how = signal.SIGTERM if signals == "both" and made % 2 else signal.SIGKILL
                    at_work = phase(folder, before)
                    killed, others, seconds = kill(children, how, chance)
                    made, longest = made + 1, max(longest, seconds)
                    counts[at_work] += 1
                    allowed = {-signal.SIGKILL} if how == signal.SIGKILL else {0}
                    if at_work == "starting":  # the handler may not be installed yet
                        allowed.add(-how)
                    if not allowed.issuperset(killed) or None in others:
                        wrong.append(f"kill {made}: exit codes {killed}, {others} after {how.name}")
                    # A kill while the oldest one is removed leaves a part of it, until the next save.
                    for checkpoint in runs.checkpoints(folder)[-KEEP:]:
                        if reason := unreadable(checkpoint):
                            wrong.append(f"kill {made}: {checkpoint}: {reason}")
                    continue
            codes = [child.wait() for child in children]
            if any(codes):
                wrong.append(f"run {ended}: exit codes {codes}; see {work_dir}/log.txt")
        if not wrong:
            got = outcome(folder)
            differ = [name for name in wanted if got.get(name) != wanted[name]]
            if differ or got.keys() != wanted.keys():
                wrong.append(f"run {ended} after {made} kills: {len(differ)} differ: {differ[:3]}")
            wrong += [f"run {ended} left {name}" for name in litter(workdir, data)]
            if (count := len(runs.checkpoints(folder))) > KEEP:
                wrong.append(f"run {ended} left {count} checkpoints")
            ended += 1
    return {
        "kills": made, "runs": ended, "seconds_a_run": length, "longest_end": longest, **counts,
        "wrong": wrong,
    }  # fmt: skip


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=pathlib.Path, required=True)
    parser.add_argument("--signals", choices=["kill", "both"], default="kill")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data_dir", default="data", help="folder with motion_zsar")
    flags = parser.parse_args()
    data_dir = str(pathlib.Path(flags.data_dir).absolute())
    found = play(
        flags.kills, flags.seed, flags.work_dir, data_dir, flags.signals, processes=flags.processes
    )
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
