"""For tests of the feature cache: a tower without JAX, processes as threads, faults of the disk."""

import contextlib
import errno
import json
import multiprocessing
import os
import pathlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from coco_jax.data import feature_shards, text_feature_cache
from coco_jax.data.text_feature_cache import BFLOAT16, Processes, TextFeatureCache
from coco_jax.errors import UserError

WIDTH = 8
SECONDS = 30  # after which a process that waits for the others counts as hanging


def encode(texts: Sequence[str]) -> np.ndarray:
    """Replaces a tower: random features, seeded by the text."""
    return np.stack([np.random.default_rng(list(t.encode())).normal(size=WIDTH) for t in texts])


def wanted(texts: Sequence[str]) -> np.ndarray:
    """The features that a cache must have."""
    return encode(texts).astype(BFLOAT16)


class Tower:
    """Encodes texts and counts them; with several processes, all must encode the same texts."""

    def __init__(self, processes: Processes = text_feature_cache.ALONE):
        self.processes, self.seen = processes, []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        asked = self.processes.gather(list(texts))
        assert all(other == list(texts) for other in asked)
        self.seen.extend(texts)
        return encode(texts)


def fill(folder: pathlib.Path, texts: Sequence[str]) -> list[str]:
    """Fills a cache, checks its features, and returns the texts that were encoded."""
    tower = Tower()
    cache = text_feature_cache.fill(folder, texts, tower, WIDTH, batch=4)
    check(cache, texts)
    return tower.seen


def check(cache: TextFeatureCache, texts: Sequence[str]) -> None:
    """Asserts that a cache has the features of texts, bit for bit."""
    np.testing.assert_array_equal(
        cache.features(texts).view(np.uint16), wanted(texts).view(np.uint16)
    )


def files(folder: pathlib.Path) -> list[str]:
    """The files of a cache other than complete shards, the lock and about.json."""
    kept = {feature_shards.LOCK, "about.json", *feature_shards.names(folder)}
    return sorted(path.name for path in folder.iterdir() if path.name not in kept)


def threads(actions: Sequence[Callable[[], object]]) -> list[object]:
    """Runs actions at the same time; returns their results, or the exceptions that they raised."""
    results: list[object] = [None] * len(actions)

    def run(index: int) -> None:
        try:
            results[index] = actions[index]()
        except Exception as error:  # the caller looks at it
            results[index] = error

    running = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(actions))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a process hangs"
    return results


def fill_together(
    folders: Sequence[pathlib.Path], texts: Sequence[Sequence[str]]
) -> tuple[list[object], list[list[str]]]:
    """Processes of one run fill the caches in their folders.

    Returns:
      For each process its cache or the exception that it raised, and the texts that it encoded.
    """
    barrier = threading.Barrier(len(folders))
    values: list[str] = [""] * len(folders)

    def gather(index: int, value: object) -> list[object]:
        values[index] = json.dumps(value)
        barrier.wait(SECONDS)
        got = [json.loads(x) for x in values]
        barrier.wait(SECONDS)
        return got

    towers = []
    for index in range(len(folders)):
        towers.append(Tower(Processes(index, lambda value, i=index: gather(i, value))))
    results = threads(
        [
            lambda f=folder, t=tower, own=some: text_feature_cache.fill(
                f, own, t, WIDTH, batch=4, processes=t.processes
            )
            for folder, tower, some in zip(folders, towers, texts, strict=True)
        ]
    )
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, UserError):
            raise result
    return results, [tower.seen for tower in towers]


@contextlib.contextmanager
def at_step(monkeypatch, event: Callable[[str], None]) -> Iterator[None]:
    """Calls `event` with the name of each step of writing, before the step is done.

    Half of the bytes of a write are on the disk when `event` is called.
    """

    class File:
        def __init__(self, *args):
            event("open")
            self.file = open(*args)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            event("write")
            self.file.write(data[len(data) // 2 :])

        def flush(self):
            self.file.flush()

        def fileno(self):
            return self.file.fileno()

    def before(name: str):
        real = getattr(feature_shards.os, name)

        def call(*args):
            event(name)
            return real(*args)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(feature_shards, "open", File, raising=False)
        for name in ("fsync", "replace"):
            patched.setattr(feature_shards.os, name, before(name))
        yield


def fill_and_kill(folder: pathlib.Path, texts: Sequence[str], at: int, shard_bytes: int) -> None:
    """Fills a cache; SIGKILL at the given step of writing, counted from 0."""
    text_feature_cache.SHARD_BYTES = shard_bytes
    left = iter(range(at))

    def event(_: str) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch, at_step(patch, event):
        fill(folder, texts)


def killed(folder: pathlib.Path, texts: Sequence[str], at: int, shard_bytes: int = 1 << 20) -> bool:
    """Runs `fill_and_kill` in another process; whether it was killed before it had finished."""
    # Forked from a process without JAX, whose threads do not survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=fill_and_kill, args=(folder, texts, at, shard_bytes))
    child.start()
    child.join(SECONDS)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


def race(folder: pathlib.Path, writers: Sequence[Sequence[str]], delay: float) -> None:
    """Independent runs fill a cache at the same time; each must get its features.

    Every step of writing is delayed by up to `delay` seconds, and after each rename by `delay`.
    """
    chance = random.Random(str(folder))
    real = os.replace

    def replace(*paths):
        assert not pathlib.Path(paths[0]).is_dir()  # buckets rename no folder atomically
        real(*paths)
        time.sleep(delay)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_shards.os, "replace", replace)
        with at_step(patch, lambda _: time.sleep(chance.uniform(0, delay))):
            for result in threads([lambda t=texts: fill(folder, t) for texts in writers]):
                if isinstance(result, Exception):
                    raise result
    union = [text for texts in writers for text in texts]
    assert fill(folder, union) == []
    assert files(folder) == []


def break_locks(monkeypatch, believed: bool) -> None:
    """Locks do not exclude anybody; if `believed`, without an error."""

    def acquire(self, *args, **kwargs):
        if not believed:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(feature_shards.filelock.FileLock, "acquire", acquire)


def flip_bit(path: pathlib.Path, bit: int) -> None:
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def check_bit_flips(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    """Flips single bits in the files of a cache, one at a time; features must stay the same."""
    chance = random.Random(seed)
    texts = [f"text {n}" for n in range(40)]
    fill(folder, texts[:25])
    fill(folder, texts)
    stored = {path: path.read_bytes() for path in folder.iterdir()}
    whole = [path for path in stored if stored[path]]
    for _ in range(count):
        path = chance.choice(whole)
        flip_bit(path, chance.randrange(8 * len(stored[path])))
        encoded = fill(folder, texts)
        # Only texts of a damaged shard are encoded again.
        assert len(encoded) == {"000001": 25, "000002": 15}.get(path.name.split("-")[0], 0)
        for path in folder.iterdir():
            path.unlink()
        for path, data in stored.items():
            path.write_bytes(data)


def fail_at_every_step(folder: pathlib.Path, code: int, monkeypatch) -> int:
    """Fills caches; writing fails at the first step, the second, and so on until a fill succeeds.

    Each failure must be a one-line UserError that leaves no partial file and no wrong features.

    Returns:
      The number of failures.
    """
    texts = [f"text {n}" for n in range(20)]
    for at in range(1000):
        failing = folder / str(at)
        left = iter(range(at))
        failed = []

        def event(step: str, left=left, failed=failed) -> None:
            # The disk stays full.
            if next(left, None) is None and step != "replace":
                failed.append(step)
                raise OSError(code, os.strerror(code))

        with at_step(monkeypatch, event):
            try:
                fill(failing, texts)
            except UserError as error:
                assert os.strerror(code) in str(error) and "\n" not in str(error)
            else:
                return at
        assert failed and files(failing) == []
        fill(failing, texts)
    raise AssertionError("every fill failed")


def _writer(folder: pathlib.Path, texts: Sequence[str], trials: int, delay: float, barrier) -> None:
    real = os.replace

    def replace(*paths):
        real(*paths)
        time.sleep(delay)

    os.replace = replace
    for trial in range(trials):
        barrier.wait(SECONDS)
        fill(folder / str(trial), texts)


def race_of_processes(
    folder: pathlib.Path, writers: Sequence[Sequence[str]], trials: int, delay: float
) -> None:
    """Processes fill the same caches, at the same time; each must get its features in every trial.

    After each rename they wait `delay` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier = context.Barrier(len(writers))
    running = [
        context.Process(target=_writer, args=(folder, texts, trials, delay, barrier))
        for texts in writers
    ]
    for child in running:
        child.start()
    for child in running:
        child.join()
    assert [child.exitcode for child in running] == [0] * len(running)
    union = [text for texts in writers for text in texts]
    for trial in range(trials):
        assert fill(folder / str(trial), union) == []
        assert files(folder / str(trial)) == []
