"""Tests of the corpus and the memory measurement of benchmarks/actionhub_scale.py."""

import collections
import gzip
import itertools
import sys

from benchmarks import actionhub_scale as scale
from tfds_builders.actionhub import readers


def test_corpus_is_reproducible_and_its_actions_follow_zipf():
    rows = list(scale.corpus(20_000, 0))
    assert list(itertools.islice(scale.corpus(500, 0), 500)) == rows[:500]
    assert list(scale.corpus(500, 1)) != rows[:500]
    counts = [count for _, count in collections.Counter(r["action"] for r in rows).most_common()]
    harmonic = sum(1 / k for k in range(1, scale.ACTIONS + 1))
    for rank in (1, 2, 3, 5, 10):
        expected = len(rows) / harmonic / rank
        assert abs(counts[rank - 1] - expected) < 0.15 * expected
    assert 0.8 * scale.ACTIONS < len(counts) <= scale.ACTIONS


def test_written_corpus_is_readable_and_not_overwritten(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    scale.write(path, 300, 0)
    tally = readers.Tally()
    assert len(list(readers.read(tmp_path, tally))) == 300
    with gzip.open(path, "wt") as file:
        file.write("kept")
    scale.write(path, 300, 0)  # an existing file is kept
    assert gzip.decompress(path.read_bytes()) == b"kept"


def test_measured_memory_includes_child_processes():
    child = "x = bytearray(60 << 20); import time; time.sleep(1.5)"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); sys.exit(3)"
    )
    seconds, peak, code = scale.measure([sys.executable, "-c", parent])
    assert code == 3
    assert seconds > 1.5
    assert 60 << 20 < peak < 200 << 20
