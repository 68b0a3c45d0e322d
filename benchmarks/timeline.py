"""The timeline of a long video that is made of real clips, whose actions and times are known.

python -m benchmarks.timeline --clips=FOLDER

FOLDER/clips.csv has the columns file and action, as for benchmarks/real_clips.py. The clips are scaled
to 1080p, joined to a video of ten minutes, and given to `coco-jax predict --timeline` in a process of
its own, with the actions of the clips as candidates. Printed are the share of the time that has the
right action, the peak of the memory, and the time per minute of video.
"""

import contextlib
import csv
import itertools
import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.filter
import numpy as np
from absl import app, flags

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


def scaled_frames(path: pathlib.Path) -> Iterator[Any]:
    """The frames of a clip, FPS a second, scaled to fit into 1080p with black borders."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        shape = f"{WIDTH}:{HEIGHT}:force_original_aspect_ratio=decrease:force_divisible_by=2"
        graph.link_nodes(
            graph.add_buffer(template=stream),
            graph.add("fps", str(FPS)),
            graph.add("scale", f"{shape}:flags=fast_bilinear"),
            graph.add("pad", f"{WIDTH}:{HEIGHT}:-1:-1"),
            graph.add("format", "yuv420p"),
            graph.add("buffersink"),
        ).configure()
        for frame in itertools.chain(container.decode(stream), [None]):  # None: the end
            graph.push(frame)
            with contextlib.suppress(av.BlockingIOError, av.EOFError):  # needs more, or has ended
                while True:
                    yield graph.pull()


def join(rows: list[dict[str, str]], folder: pathlib.Path, path: pathlib.Path) -> list[Part]:
    """Writes the joined video: the clips in a shuffled order, repeated. Returns its parts."""
    parts: list[Part] = []
    count, once = 0, path.with_suffix(".once.mp4")
    with av.open(str(once), "w", format="mp4") as out:
        options = {"preset": "ultrafast", "crf": "23"}  # no B-frames: packets are in order
        stream: Any = out.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for row in np.random.default_rng(0).permutation(np.array(rows, dtype=object)):
            start = count
            for frame in scaled_frames(folder / row["file"]):
                frame.pts, frame.time_base, frame.pict_type = count, Fraction(1, FPS), 0
                out.mux(stream.encode(frame))
                count += 1
            parts.append(Part(start / FPS, count / FPS, row["action"]))
        out.mux(stream.encode())
    seconds, wanted = count / FPS, MINUTES.value * 60
    with av.open(str(path), "w", format="mp4") as out:
        copied: Any = None
        for turn in range(math.ceil(wanted / seconds)):
            with av.open(str(once)) as source:
                copied = copied or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size and packet.pts * packet.time_base + turn * seconds < wanted:
                        packet.pts += round(turn * seconds / packet.time_base)
                        packet.dts, packet.stream = packet.pts, copied
                        out.mux(packet)
    once.unlink()
    shifted = [
        Part(part.start + turn * seconds, min(part.end + turn * seconds, wanted), part.action)
        for turn in range(math.ceil(wanted / seconds))
        for part in parts
    ]
    return [part for part in shifted if part.start < wanted]


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
