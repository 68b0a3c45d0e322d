"""The timeline of a long video that is made of real clips, whose actions and times are known.

python -m benchmarks.timeline --clips=FOLDER

FOLDER/clips.csv has the columns file and action, as for benchmarks/real_clips.py. The clips are scaled
to 1080p, joined to a video of ten minutes, and given to `coco-jax predict --timeline` in a process of
its own, with the actions of the clips as candidates. Printed are the share of the time that has the
right action, the peak of the memory, and the time per minute of video.
"""

import csv
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from absl import app, flags

from coco_jax.data import video as videos

CLIPS = flags.DEFINE_string("clips", None, "Folder of the clips.", required=True)
MINUTES = flags.DEFINE_float("minutes", 10.0, "Duration of the joined video.")
FLAGS = flags.DEFINE_multi_string(
    "flag", [], "Further flags of predict, e.g. --flag=--stride=2.56."
)
FILE = flags.DEFINE_string("file", None, "Keep the joined video here, or use the one that is here.")
HEIGHT, WIDTH, FPS = 1080, 1920, 25


class Part(NamedTuple):
    """A clip in the joined video."""

    start: float  # seconds
    end: float
    action: str


def clip_frames(path: pathlib.Path) -> Any:
    """The frames of a clip, at FPS frames a second, one after the other."""
    info = videos.probe(path)
    index_T = videos.shown_at(info, np.arange(int(info.duration * FPS)) / FPS)
    with av.open(str(path)) as container:
        shown = -1
        frames = container.decode(container.streams.video[0])
        frame: Any = None
        for index in index_T.tolist():
            while shown < index:
                frame, shown = next(frames, frame), shown + 1
            yield frame


def letterboxed(frame: Any) -> av.VideoFrame:
    """The frame, scaled to fit into 1080p, with black borders."""
    scale = min(HEIGHT / frame.height, WIDTH / frame.width)
    height, width = (round(side * scale / 2) * 2 for side in (frame.height, frame.width))
    rgb = frame.reformat(width, height, "rgb24").to_ndarray()
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    canvas[top : top + height, left : left + width] = rgb
    return av.VideoFrame.from_ndarray(canvas, format="rgb24")


def join(rows: list[dict[str, str]], folder: pathlib.Path, path: pathlib.Path) -> list[Part]:
    """Writes the joined video, which repeats the clips in a shuffled order; returns its parts."""
    parts: list[Part] = []
    count, rng = 0, np.random.default_rng(0)
    with av.open(str(path), "w", format="mp4") as out:
        stream: Any = out.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "crf": "23"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        while count < MINUTES.value * 60 * FPS:
            for row in rng.permutation(np.array(rows, dtype=object)):
                start = count
                for frame in clip_frames(folder / row["file"]):
                    picture = letterboxed(frame)
                    picture.pts, picture.time_base = count, Fraction(1, FPS)
                    out.mux(stream.encode(picture))
                    count += 1
                    if count >= MINUTES.value * 60 * FPS:
                        break
                parts.append(Part(start / FPS, count / FPS, row["action"]))
                if count >= MINUTES.value * 60 * FPS:
                    break
        out.mux(stream.encode())
    return parts


def right_share(parts: list[Part], segments: list[dict[str, Any]]) -> float:
    """The share of the time in which a segment has the action of the part."""
    overlap = sum(
        max(min(part.end, s["end"]) - max(part.start, s["start"]), 0)
        for part in parts
        for s in segments
        if s["action"] == part.action
    )
    return overlap / parts[-1].end


def main(argv: list[str]) -> None:
    """Joins the clips, runs the command, and prints the numbers."""
    del argv
    folder = pathlib.Path(CLIPS.value)
    with (folder / "clips.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(FILE.value or f"{temporary}/joined.mp4")
        table = path.with_suffix(".json")
        if not table.exists():
            table.write_text(json.dumps(join(rows, folder, path)))
        parts = [Part(*part) for part in json.loads(table.read_text())]
        names = pathlib.Path(temporary) / "actions.txt"
        names.write_text("\n".join(row["action"] for row in rows))
        begun = time.monotonic()
        done = subprocess.run(
            [
                sys.executable, "-m", "coco_jax.predict", str(path), "--timeline", "--json",
                f"--actions_file={names}", *FLAGS.value,
            ],
            stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip
        elapsed = time.monotonic() - begun
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    (row,) = json.loads(done.stdout)
    minutes = parts[-1].end / 60
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{minutes:.1f} minutes, {len(parts)} clips, {len(rows)} candidates, "
        f"{len(row['segments'])} segments: "
        f"right {100 * right_share(parts, row['segments']):.1f} % of the time; "
        f"peak {usage.ru_maxrss / 1024:,.0f} MiB; per minute of video {elapsed / minutes:.1f} s, "
        f"{cpu / minutes:.1f} s of CPU time"
    )
    print(json.dumps(row["segments"][:5]))


if __name__ == "__main__":
    app.run(main)
