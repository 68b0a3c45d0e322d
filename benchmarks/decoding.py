"""Decoding of clips: 8 frames, evenly spread, short side 224, against decord and plain PyAV.

pip install decord
python -m benchmarks.decoding --clips=FOLDER

Each reads every video of the folder that all three can read, in turns; one thread. The scalers differ,
so pixels are compared with PyAV alone, whose frames are scaled by the same library as ours.
"""

import pathlib
import time

import av
import decord
import numpy as np
from absl import app, flags

from coco_jax.data import video as videos

CLIPS = flags.DEFINE_string("clips", None, "Folder of videos.", required=True)
REPEATS = flags.DEFINE_integer("repeats", 3, "Turns; the best time of each counts.", lower_bound=1)
FRAMES, SIDE = 8, 224
info_of: dict[pathlib.Path, videos.VideoInfo] = {}


def ours(path: pathlib.Path) -> np.ndarray:
    """The data pipeline's decoder."""

    def times(info: videos.VideoInfo) -> np.ndarray:
        return videos.sample_times(FRAMES, info.duration, "uniform")

    return videos.decode(path, times, short_side=SIDE)


def by_decord(path: pathlib.Path) -> np.ndarray:
    """decord's VideoReader, which scales while it decodes."""
    height, width = _target(path)
    reader = decord.VideoReader(str(path), width=width, height=height, num_threads=1)
    index_T = ((np.arange(FRAMES) + 0.5) / FRAMES * len(reader)).astype(int)
    return reader.get_batch(index_T).asnumpy()


def by_pyav(path: pathlib.Path) -> np.ndarray:
    """PyAV from the first to the last frame that is needed."""
    height, width = _target(path)
    index_T = videos.shown_at(info_of[path], _times(path))
    found: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for i, frame in enumerate(container.decode(video=0)):
            if i in index_T:
                found[i] = frame.to_ndarray(
                    format="rgb24", width=width, height=height, interpolation="BILINEAR"
                )
            if i >= index_T[-1]:
                break
    return np.stack([found[i] for i in index_T.tolist()])


def _times(path: pathlib.Path) -> np.ndarray:
    return videos.sample_times(FRAMES, info_of[path].duration, "uniform")


def _target(path: pathlib.Path) -> tuple[int, int]:
    info = info_of[path]
    scale = SIDE / min(info.height, info.width)
    return max(round(info.height * scale), SIDE), max(round(info.width * scale), SIDE)


def main(argv: list[str]) -> None:
    """Prints the times and their ratios."""
    del argv
    readers = {"coco_jax": ours, "decord": by_decord, "PyAV": by_pyav}
    paths, left_out = [], []
    for path in sorted(pathlib.Path(CLIPS.value).iterdir()):
        if path.suffix.lower() not in videos.SUFFIXES:
            continue
        info_of[path] = videos.probe(path)
        try:
            clips = {name: reader(path) for name, reader in readers.items()}
        except (decord.DECORDError, av.FFmpegError, videos.VideoError) as error:
            left_out.append(f"{path.name} ({type(error).__name__})")
            continue
        rotated = clips["coco_jax"].shape != clips["PyAV"].shape
        if not rotated and (clips["coco_jax"] != clips["PyAV"]).any():
            print(f"{path.name}: pixels differ from PyAV's")
        paths.append(path)
    best = {name: np.full((len(paths), 2), np.inf) for name in readers}
    for _ in range(REPEATS.value):
        for n, path in enumerate(paths):
            for name, reader in readers.items():
                start = time.perf_counter(), time.process_time()
                reader(path)
                took = time.perf_counter() - start[0], time.process_time() - start[1]
                best[name][n] = np.minimum(best[name][n], took)
    print("| | wall time a video | CPU time a video |\n|---|---|---|")
    for name, seconds_N2 in best.items():
        print(f"| {name} | " + " | ".join(f"{1e3 * x:.0f} ms" for x in seconds_N2.mean(0)) + " |")
    for name in ("decord", "PyAV"):
        ratio = best[name].sum(0) / best["coco_jax"].sum(0)
        print(f"{name}: {ratio[0]:.2f} times our wall time, {ratio[1]:.2f} times our CPU time")
    print(f"{len(paths)} videos; left out, because one of the three cannot read them: {left_out}")


if __name__ == "__main__":
    app.run(main)
