"""Decoding of clips: 8 frames, evenly spread, short side 224, against decord and plain PyAV.

pip install decord
python -m benchmarks.decoding --clips=FOLDER

Each reads every video of the folder that all three can read, in turns; one thread. The scalers differ,
so pixels are compared with PyAV alone, whose frames are scaled by the same library as ours. A further
row reads the same videos as the configurations `NAME_jpeg` of the datasets store them: JPEG frames, 8 a
second, short side 288.
"""

import pathlib
import time

import av
import decord
import numpy as np
from absl import app, flags

from coco_jax.data import video as videos
from tfds_builders.common.builder import Storage

CLIPS = flags.DEFINE_string("clips", None, "Folder of videos.", required=True)
REPEATS = flags.DEFINE_integer("repeats", 3, "Turns; the best time of each counts.", lower_bound=1)
FRAMES, SIDE = 8, 224
info_of: dict[pathlib.Path, videos.VideoInfo] = {}
jpegs_of: dict[pathlib.Path, videos.Frames] = {}


def ours(path: pathlib.Path) -> np.ndarray:
    """The data pipeline's decoder."""
    return videos.decode(path, _uniform, short_side=SIDE)


def ours_jpeg(path: pathlib.Path) -> np.ndarray:
    """The data pipeline's decoder of stored JPEG frames."""
    return videos.decode(jpegs_of[path], _uniform, short_side=SIDE)


def _uniform(info: videos.VideoInfo) -> np.ndarray:
    return videos.sample_times(FRAMES, info.duration, "uniform")


def by_decord(path: pathlib.Path) -> np.ndarray:
    """decord's VideoReader, which scales while it decodes."""
    height, width = _target(path)
    reader = decord.VideoReader(str(path), width=width, height=height, num_threads=1)
    index_T = ((np.arange(FRAMES) + 0.5) / FRAMES * len(reader)).astype(int)
    return reader.get_batch(index_T).asnumpy()


def by_pyav(path: pathlib.Path) -> np.ndarray:
    """PyAV from the first to the last frame that is needed."""
    height, width = _target(path)
    index_T = videos.shown_at(info_of[path], _uniform(info_of[path]))
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
        stored = Storage("jpeg").store(path.read_bytes(), path.name)
        jpegs_of[path] = videos.Frames(tuple(stored["frames"]), stored["fps"])
        rotated = clips["coco_jax"].shape != clips["PyAV"].shape
        if not rotated and (clips["coco_jax"] != clips["PyAV"]).any():
            print(f"{path.name}: pixels differ from PyAV's")
        paths.append(path)
    readers["coco_jax, JPEG frames"] = ours_jpeg
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
        for own in ("coco_jax", "coco_jax, JPEG frames"):
            wall, cpu = best[name].sum(0) / best[own].sum(0)
            print(f"{name}: {wall:.2f} times the wall time of {own}, {cpu:.2f} times its CPU time")
    print(f"{len(paths)} videos; left out, because one of the three cannot read them: {left_out}")


if __name__ == "__main__":
    app.run(main)
