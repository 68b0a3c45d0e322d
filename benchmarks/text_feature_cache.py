"""Measures time and memory of a text feature cache of ActionHub's size: adding, opening, drawing.

    python -m benchmarks.text_feature_cache --dir=/tmp/bank    # 3.6 million texts of 384 values, 2.8 GB
    python -m benchmarks.text_feature_cache --dir=/tmp/bank --texts=100000

The features are random; the number of features per action follows Zipf's law over 1,211 actions. Memory
is RssAnon, which leaves out the mapped pages of files: the system can evict those at any time.

A draw is compared with encoding as many texts again: MiniLM in torch (BERT of `transformers`, of its
size, with random weights) on 1,024 captions of the starter corpus, in batches of 64 that are padded to
their longest text.
"""

import argparse
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from coco_jax.data import starter, text_feature_cache
from coco_jax.data.text_feature_cache import FeatureSampler
from coco_jax.recognition.parts import TextEncoder

ACTIONS = 1211  # arXiv 2401.11654
T = TypeVar("T")


def anonymous() -> float:
    """Memory of this process in MiB, without mapped files."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def measured(name: str, action: Callable[[], T]) -> T:
    """Calls a function; prints the seconds it took and the memory after it."""
    began, cpu = time.perf_counter(), time.process_time()
    result = action()
    print(
        f"{name}: {time.perf_counter() - began:.1f} s ({time.process_time() - cpu:.1f} s of CPU), "
        f"{anonymous():.0f} MiB"
    )
    return result


def seconds_to_encode(texts: Sequence[str], batch: int = 64) -> float:
    """Seconds in which torch encodes texts, without those of the tokenizer."""
    # Imported late, so that torch does not count in the memory that was measured before.
    import torch

    from tests.helpers import references

    assert references  # importing it makes torchvision, and so transformers, importable
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    model = BertModel(BertConfig(**size, intermediate_size=1536)).eval()
    ids_NL = torch.tensor(TextEncoder.published("minilm").tokenizer(texts)).long()
    began = time.perf_counter()
    with torch.inference_mode():
        for part in ids_NL.split(batch):
            part = part[:, : int((part != 0).sum(1).max())]
            model(part, attention_mask=(part != 0).long())
    return time.perf_counter() - began


def main() -> None:
    """Runs the benchmark and prints its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--texts", type=int, default=3_600_000)
    parser.add_argument(
        "--width", type=int, default=384, help="values per feature; 384 as in MiniLM"
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--count", type=int, default=16, help="features drawn per class")
    args = parser.parse_args()
    batch_NW = np.random.default_rng(0).normal(size=(1024, args.width)).astype(np.float32)

    def encode(texts: Sequence[str]) -> np.ndarray:
        return batch_NW[: len(texts)]

    def fill() -> text_feature_cache.TextFeatureCache:
        return text_feature_cache.fill(args.dir / "cache", texts, encode, args.width)

    texts = measured("texts", lambda: [f"description {n}" for n in range(args.texts)])
    measured("hashes of the texts", lambda: text_feature_cache.digests(texts))
    measured("adding", fill)
    cache = measured("opening", fill)
    texts.clear()

    share_K = 1 / np.arange(1, ACTIONS + 1)
    counts_K = np.maximum((args.texts * share_K / share_K.sum()).astype(np.int64), 1)
    # As in a corpus, the rows of an action are not contiguous.
    row_X = np.random.default_rng(1).permutation(args.texts)[: counts_K.sum()]
    sampler = FeatureSampler(cache, row_X, counts_K)
    rng, times, memory = np.random.default_rng(2), [], []
    sampler.draw(rng, args.count)
    cpu = time.process_time()
    for _ in range(args.draws):
        began = time.perf_counter()
        drawn = sampler.draw(rng, args.count)
        times.append(1e3 * (time.perf_counter() - began))
        memory.append(anonymous())
    assert drawn.shape == (ACTIONS, args.count, args.width)
    cpu = 1e3 * (time.process_time() - cpu) / args.draws
    print(
        f"{args.count} features of each of {ACTIONS:,} classes from {len(cache.shards)} shards, "
        f"{args.draws} draws: median {np.median(times):.1f} ms, 99% {np.percentile(times, 99):.1f} ms, "
        f"mean {cpu:.1f} ms of CPU; {memory[0]:.0f} MiB after the first draw, at most {max(memory):.0f}"
    )
    captions = [text for action in starter.load().values() for text in action.captions]
    chosen = np.random.default_rng(3).choice(len(captions), 1024, replace=False)
    each = seconds_to_encode([captions[n] for n in chosen]) / len(chosen)
    again = each * ACTIONS * args.count
    print(
        f"encoding as many texts in torch: {again:.0f} s ({1e3 * each:.1f} ms each), "
        f"{1e3 * again / np.median(times):,.0f} times a draw"
    )


if __name__ == "__main__":
    main()
