"""Draws from a description bank of ActionHub's size: how long, and how much memory over many draws.

    python -m benchmarks.text_feature_cache --dir=/tmp/bank                    # 3.6 million rows of 384 values, 2.8 GB
    python -m benchmarks.text_feature_cache --dir=/tmp/bank --rows=100000

The features are made up; their spread over 1,211 actions is Zipf's. Memory is what the process
itself holds (RssAnon): mapped pages of the file belong to the system, which takes them back at will.
"""

import argparse
import pathlib
import re
import time

import numpy as np

from coco_jax.data.text_feature_cache import BFLOAT16, FeatureSampler

ACTIONS = 1211  # arXiv 2401.11654


def make(path: pathlib.Path, rows: int, width: int) -> None:
    """Writes the features once, a slice at a time."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    out = np.lib.format.open_memmap(partial, "w+", np.uint16, (rows, width))
    slice_NW = np.random.default_rng(0).normal(size=(1 << 14, width)).astype(BFLOAT16)
    for at in range(0, rows, len(slice_NW)):
        out[at : at + len(slice_NW)] = slice_NW[: rows - at].view(np.uint16)
    out.flush()
    partial.rename(path)


def anonymous() -> float:
    """MiB that this process holds beside mapped files."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=3_600_000)
    parser.add_argument("--width", type=int, default=384, help="of MiniLM")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--count", type=int, default=16, help="descriptions a class")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    path = args.dir / f"features-{args.rows}-{args.width}.npy"
    make(path, args.rows, args.width)

    share_K = 1 / np.arange(1, ACTIONS + 1)
    counts_K = np.maximum((args.rows * share_K / share_K.sum()).astype(np.int64), 1)
    features_NW = np.lib.format.open_memmap(path, "r").view(BFLOAT16)
    # As in a corpus: an action's rows lie anywhere.
    place_X = np.random.default_rng(1).permutation(args.rows)[: counts_K.sum()]
    bank = FeatureSampler(features_NW, place_X, counts_K)
    rng, times, memory = np.random.default_rng(2), [], []
    for _ in range(args.draws):
        began = time.perf_counter()
        drawn = bank.draw(rng, args.count)
        times.append(1e3 * (time.perf_counter() - began))
        memory.append(anonymous())
    assert drawn.shape == (ACTIONS, args.count, args.width)
    late = times[len(times) // 10 :]
    print(
        f"{args.rows:,} rows x {args.width}: {args.count} of each of {ACTIONS:,} classes, "
        f"{args.draws} draws: median {np.median(late):.1f} ms, 99% {np.percentile(late, 99):.1f} ms, "
        f"first {times[0]:.1f} ms; own memory {memory[0]:.0f} MiB after the first draw, "
        f"{memory[-1]:.0f} after the last, at most {max(memory):.0f}"
    )


if __name__ == "__main__":
    main()
