"""Measures time and memory of building a corpus of ActionHub's size.

    python -m benchmarks.actionhub_scale --work_dir=/tmp/scale                  # 3.6 million rows
    python -m benchmarks.actionhub_scale --work_dir=/tmp/scale --rows=100000    # a quick test

The corpus is synthetic and determined by the seed: captions from a small grammar for 1,211 actions, the
k-th with a frequency proportional to 1/k (Zipf), with planted flaws of each kind that cleaning removes.
`python -m tfds_builders.build actionhub/manual` then builds it with and without cleaning. Memory is the
Pss of that command and its children from /proc, which counts shared pages once.
"""

import argparse
import gzip
import itertools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import psutil

ROOT = pathlib.Path(__file__).resolve().parents[1]
ACTIONS, ROWS = 1211, 3_600_000  # arXiv 2401.11654
LIMIT = 2 << 30  # bytes


def _choices(text: str) -> list[str]:
    return [" ".join(choice.split()) for choice in text.split("|")]


WHO = _choices(
    """
    a man | a woman | two friends | the girl | a boy | someone | an old man | a group of people
    | a teenager | a coach | three children | a couple | a tall athlete | the player | a young
    woman | her brother
    """
)
LOOK = _choices(
    """
    in a red shirt | in a blue jacket | wearing a helmet | with long hair | in shorts | with a
    beard | in black gloves | with glasses | in a striped sweater | in uniform | wearing a cap |
    in white trousers |
    """
)
HOW = _choices(
    """
    slowly | quickly | with care | again and again | for the camera | with great skill |
    barefoot | with one hand | without looking | laughing | in slow motion | while music plays |
    step by step | twice | against the clock |
    """
)
WHERE = _choices(
    """
    in a gym | on a beach | in the kitchen | at the park | on a stage | in front of a crowd | in
    the snow | beside a river | in a small room | on a wooden floor | under bright lights | in
    the street | in a garden | on a mountain trail | at school | near a parked car
    """
)
THEN = _choices(
    """
    and then turns around | before falling over | until the others clap | and looks at the
    result | and shows how it is done | while a dog watches | and the video ends | then starts
    once more | and smiles | while others wait for their turn | and wipes the hands | as the
    camera moves closer |
    """
)
VERBS = _choices(
    """
    lifting | throwing | catching | folding | polishing | cutting | stacking | balancing |
    rolling | pulling | pushing | turning | painting | cleaning | opening | closing | riding |
    climbing | kicking | hitting | drumming | carving | washing | shaking
    """
)
THINGS = _choices(
    """
    a rope | a ball | boxes | a ladder | paper | apples | a drum | a boat | wood | a hat |
    stones | a door | glasses | a bicycle | snow | a cake | bricks | a horse | a kite | clothes
    | tools | a table | dough | a wheel | shoes | cards | a bow | a sled | plants | a tent |
    windows | bread | a net | coins | a mirror | nails | a bucket | flowers | a scarf | candles
    | a piano | a camera | leaves | a sword | eggs | a fence | a mat | a saw | tiles | fish | a
    rug
    """
)
FOREIGN = (
    "Ein Mann zeigt, wie man es richtig macht, und lacht dabei in die Kamera.",
    "Une femme montre comment faire, puis elle recommence plus lentement.",
    "Un chico lo hace otra vez mientras los demás esperan su turno.",
)


def corpus(rows: int, seed: int):
    """Yields rows as dicts; every twelfth one has a flaw, each kind in turn."""
    draw = random.Random(seed)
    actions = [f"{v} {t}" for v, t in itertools.product(VERBS, THINGS)]
    actions = draw.sample(actions, ACTIONS)
    weights = list(itertools.accumulate(1 / k for k in range(1, ACTIONS + 1)))
    last = {}
    for number in range(rows):
        action = actions[0] if number == 0 else draw.choices(actions, cum_weights=weights)[0]
        parts = [draw.choice(WHO), draw.choice(LOOK), "is", action, draw.choice(HOW)]
        parts += [draw.choice(WHERE), draw.choice(THEN)]
        if draw.random() < 0.7:  # most captions have two sentences
            again = [draw.choice(WHO), draw.choice(LOOK), "watches", draw.choice(WHERE)]
            parts += [". Behind,", *again, draw.choice(HOW), draw.choice(THEN)]
        text = " ".join(filter(None, parts)).replace(" .", ".").capitalize() + "."
        video = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789-_", k=11))
        if number % 12 == 0:
            text = _flaw(number // 12 % 8, text, last.get(action, text), draw)
        last[action] = text
        yield {"action": action, "caption": text, "source": "made up", "video_id": video}


def _flaw(kind: int, text: str, before: str, draw: random.Random) -> str:
    return [
        lambda: before,
        lambda: before.upper(),
        lambda: before.replace("the ", "that ", 1) + " " + draw.choice(("Yes.", "Ok.")),
        lambda: text + " https://example.org/watch?v=1",
        lambda: "🤸🏽‍♂️ " + text,
        lambda: text.replace(".", " &amp; more â€” caf\u00c3\u00a9."),
        lambda: draw.choice(FOREIGN),
        lambda: text.split()[-1],
    ][kind]()


def write(path: pathlib.Path, rows: int, seed: int) -> None:
    """Writes the corpus as gzipped JSON lines, unless the file exists."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    with gzip.open(partial, "wt", compresslevel=3, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in corpus(rows, seed))
    partial.rename(path)


def measure(command: list[str]) -> tuple[float, int, int]:
    """Runs a command; returns seconds, peak memory of it and its children in bytes, and exit code."""
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _memory(watched))
            time.sleep(0.2)
    return time.monotonic() - start, peak, process.returncode


def _memory(process: psutil.Process) -> int:
    total = 0
    try:
        for child in (process, *process.children(recursive=True)):
            memory = child.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    except psutil.Error:  # the process has ended
        pass
    return total


def main() -> int:
    """Runs the benchmark; returns 1 if a build failed or exceeded the memory limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work_dir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cleaning",
        nargs="+",
        default=["all", "none"],
        help="values of --cleaning; one build for each",
    )
    args = parser.parse_args()
    manual = args.work_dir / f"manual-{args.rows}-{args.seed}"
    manual.mkdir(parents=True, exist_ok=True)
    path = manual.resolve() / "corpus.jsonl.gz"
    start = time.monotonic()
    write(path, args.rows, args.seed)
    size = path.stat().st_size / 1e6
    print(f"{path.name}: {args.rows:,} rows, {size:.0f} MB, {time.monotonic() - start:.0f} s")
    failed = False
    for cleaning in args.cleaning:
        data = args.work_dir.resolve() / f"data-{cleaning}"
        shutil.rmtree(data, ignore_errors=True)
        command = [sys.executable, "-m", "tfds_builders.build", "actionhub/manual"]
        command += [f"--data_dir={data}", f"--manual_dir={path.parent}"]
        if cleaning != "all":
            command.append(f"--cleaning={cleaning}")
        seconds, peak, code = measure(command)
        if code:
            print(
                f"cleaning={cleaning}: the build failed with exit code {code}; see its error above"
            )
            return 1
        (folder,) = (data / "actionhub" / "manual").glob("[0-9]*")
        report = json.loads((folder / "metadata.json").read_text())["report"]
        stored = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
        print(
            f"cleaning={cleaning}: {report['read']:,} rows read, {report['kept']:,} stored "
            f"({stored:.0f} MB), {seconds:.0f} s ({args.rows / seconds:,.0f} rows/s), "
            f"peak memory {peak / 2**20:,.0f} MiB of {LIMIT >> 20:,}; skipped {report['skipped']}"
        )
        failed |= peak > LIMIT
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
