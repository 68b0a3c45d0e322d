"""Measures time and memory of draws from a text feature cache of ActionHub's size.

    python -m benchmarks.text_feature_cache --dir=/tmp/bank    # 3.6 million rows of 384 values, 2.8 GB
    python -m benchmarks.text_feature_cache --dir=/tmp/bank --rows=100000

The features are random; the number of features per action follows Zipf's law over 1,211 actions. Memory
is RssAnon, which leaves out the mapped pages of the file: the system can evict those at any time.
"""

import argparse
import pathlib
import re
import time

import numpy as np

from coco_jax.data.text_feature_cache import BFLOAT16, FeatureSampler

ACTIONS = 1211  # arXiv 2401.11654


def make(path: pathlib.Path, rows: int, width: int) -> None:
    """Writes random bfloat16 features (rows, width), stored as uint16, unless the file exists."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    out = np.lib.format.open_memmap(partial, "w+", np.uint16, (rows, width))
    slice_NW = np.random.default_rng(0).normal(size=(1 << 14, width)).astype(BFLOAT16)
    for start in range(0, rows, len(slice_NW)):
        out[start : start + len(slice_NW)] = slice_NW[: rows - start].view(np.uint16)
    out.flush()
    partial.rename(path)


def anonymous() -> float:
    """Memory of this process in MiB, without mapped files."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Runs the benchmark and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=3_600_000)
    parser.add_argument(
        "--width", type=int, default=384, help="values per feature; 384 as in MiniLM"
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--count", type=int, default=16, help="features drawn per class")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    path = args.dir / f"features-{args.rows}-{args.width}.npy"
    make(path, args.rows, args.width)

    share_K = 1 / np.arange(1, ACTIONS + 1)
    counts_K = np.maximum((args.rows * share_K / share_K.sum()).astype(np.int64), 1)
    features_NW = np.lib.format.open_memmap(path, "r").view(BFLOAT16)
    # As in a corpus, the rows of an action are not contiguous.
    place_X = np.random.default_rng(1).permutation(args.rows)[: counts_K.sum()]
    sampler = FeatureSampler(features_NW, place_X, counts_K)
    rng, times, memory = np.random.default_rng(2), [], []
    for _ in range(args.draws):
        began = time.perf_counter()
        drawn = sampler.draw(rng, args.count)
        times.append(1e3 * (time.perf_counter() - began))
        memory.append(anonymous())
    assert drawn.shape == (ACTIONS, args.count, args.width)
    later = times[len(times) // 10 :]
    print(
        f"{args.rows:,} rows x {args.width}: {args.count} features of each of {ACTIONS:,} classes, "
        f"{args.draws} draws: median {np.median(later):.1f} ms, 99% {np.percentile(later, 99):.1f} ms, "
        f"first {times[0]:.1f} ms; memory without mapped files "
        f"{memory[0]:.0f} MiB after the first draw, {memory[-1]:.0f} after the last, "
        f"at most {max(memory):.0f}"
    )


if __name__ == "__main__":
    main()
