"""Time and memory of searches in indexes of many windows, made from the windows of real videos.

python -m benchmarks.index_search --videos=FOLDER --windows=10000,1000000

New vectors are mixtures of two real ones with noise, so their scores are spread like real ones. Each
index is searched by a process of its own, which reports the largest memory that it had.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from absl import app, flags

import coco_jax
from coco_jax.recognition import index, index_faiss, index_store
from coco_jax.recognition.timeline import WINDOW

VIDEOS = flags.DEFINE_string("videos", None, "Folder of real videos.")
WINDOWS = flags.DEFINE_list("windows", ["10000"], "Numbers of windows.")
FOLDER = flags.DEFINE_string(
    "folder", None, "Where indexes are written; a temporary one by default."
)
SEARCH = flags.DEFINE_string("search", None, "Of the child process: the index.")
FAISS = flags.DEFINE_bool("faiss", False, "Also measure FAISS.")
ACTIONS = (
    "riding a horse",
    "juggling",
    "playing guitar",
    "archery",
    "folding paper",
    "somersaulting",
)
REPEATS = 10
PER_VIDEO = 1000  # windows of an invented video


def mixtures(v_ND: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Invented vectors: mixtures of two real ones with noise, as long as the first of them."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(len(v_ND), size=(2, count))
    share = rng.uniform(0.6, 1.0, (count, 1)).astype(np.float32)
    noise = rng.normal(size=(count, v_ND.shape[1])).astype(np.float32)
    mixed = share * v_ND[a] + (1 - share) * v_ND[b]
    mixed += 0.3 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    lengths = np.linalg.norm(v_ND[a], axis=1) / np.linalg.norm(mixed, axis=1)
    return (mixed * lengths[:, None]).astype(np.float32)


def write(folder: pathlib.Path, recognizer, v_ND: np.ndarray, count: int) -> None:
    """Writes an index of invented windows."""
    settings = index_store.Settings(
        recognizer.fingerprint, "invented", WINDOW, WINDOW, recognizer.row_width
    )

    def part(number: int, size: int) -> index_store.Part:
        def blocks() -> Iterator[np.ndarray]:
            yield recognizer.rows(mixtures(v_ND, size, number))

        starts_N = np.arange(size) * WINDOW
        times_N2 = np.stack([starts_N, starts_N + WINDOW], 1)
        return index_store.Part(size * WINDOW, times_N2, blocks())

    videos = [
        (
            index_store.Video(f"{n:06}.mp4", 0, 0, f"{n:064}", 0.0, 0, 0, ""),
            part(n, min(PER_VIDEO, count - n * PER_VIDEO)),
        )
        for n in range(-(-count // PER_VIDEO))
    ]
    folder.mkdir(parents=True)
    index_store.write(folder, settings, videos)


def seconds(function) -> tuple[float, float]:
    """The time of the first call, and the median of the others."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times[0], float(np.median(times[1:]))


def memory() -> dict[str, float]:
    """GB of this process now: its own memory, and all with mapped files; and the most that it had."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    sizes = {
        line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "VmHWM"))
    }
    return {
        "own_gb": int(sizes["RssAnon"]) / 1e6,
        "most_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def search(folder: str) -> None:
    """Measures searches in an index; prints JSON."""
    recognizer = coco_jax.load()
    candidates = recognizer.embed_actions(ACTIONS)
    one = recognizer.embed_actions(ACTIONS[:1])
    before = memory()
    opened = index.Index(folder, recognizer)
    measured = {"windows": len(opened)}
    measured["first_s"], measured["one_action_s"] = seconds(lambda: opened.search(one))
    _, measured["six_actions_s"] = seconds(lambda: opened.search(candidates))
    measured |= {f"exact_{name}": value for name, value in memory().items()}
    measured["before_own_gb"] = before["own_gb"]
    if FAISS.value:
        start = time.perf_counter()
        index_faiss.opened(opened)
        measured["faiss_build_s"] = time.perf_counter() - start
        exact = opened.search(candidates)
        loaded = index_faiss.opened(opened)
        found = index_faiss.search(opened, candidates, 10, loaded)
        hits = sum(len(set(a) & set(b)) for a, b in zip(exact, found, strict=True))
        measured["faiss_recall"] = hits / sum(map(len, exact))
        _, measured["faiss_one_action_s"] = seconds(
            lambda: index_faiss.search(opened, one, 10, loaded)
        )
        measured |= {f"faiss_{name}": value for name, value in memory().items()}
    print(json.dumps(measured))


def main(argv: list[str]) -> None:
    """Makes the indexes, and measures each in a process of its own."""
    del argv
    if SEARCH.value:
        search(SEARCH.value)
        return
    recognizer = coco_jax.load()
    paths = sorted(
        path
        for path in pathlib.Path(VIDEOS.value).iterdir()
        if path.suffix in (".mp4", ".avi", ".mkv", ".gif")
    )
    start = time.perf_counter()
    v_ND = np.concatenate([recognizer.embed_windows(path, WINDOW).v_TD for path in paths])
    print(f"{len(v_ND)} real windows of {len(paths)} videos: {time.perf_counter() - start:.0f} s")
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        for count in map(int, WINDOWS.value):
            place = pathlib.Path(folder) / str(count)
            start = time.perf_counter()
            write(place, recognizer, v_ND, count)
            print(f"{count:,} windows written: {time.perf_counter() - start:.0f} s", flush=True)
            arguments = [f"--search={place}", *(["--faiss"] if FAISS.value else [])]
            subprocess.run(
                [sys.executable, "-m", "benchmarks.index_search", *arguments], check=True
            )


if __name__ == "__main__":
    app.run(main)
