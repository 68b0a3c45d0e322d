"""Times functions in turns, and the product of two matrices between them as a measure of the machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

SIDE = 2048  # of the matrices
PRODUCT = "matrix product"


class Times(NamedTuple):
    """Seconds of a call."""

    best: float
    median: float
    cpu: float  # the least


def matrix_product() -> Callable[[], np.ndarray]:
    """A function that multiplies two matrices of `SIDE` x `SIDE` float32 values."""
    matrix = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    product = jax.jit(lambda a: a @ a)
    return lambda: np.asarray(product(matrix))


def rate(times: Times) -> float:
    """GFLOP/s of the matrix product, at its best time."""
    return 2 * SIDE**3 / 1e9 / times.best


def measure(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """Times each of `calls` `repeats` times, in turns, after one call that is not timed."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            if turn:
                wall[name].append(time.perf_counter() - start[0])
                cpu[name].append(time.process_time() - start[1])
    return {
        name: Times(min(wall[name]), statistics.median(wall[name]), min(cpu[name]))
        for name in calls
    }


def show(title: str, times: Mapping[str, Times]) -> None:
    """Prints a table."""
    print(f"\n| {title} | best wall time | median | best CPU time |\n|---|---|---|---|")
    for name, x in times.items():
        print(f"| {name} | {x.best:.3f} s | {x.median:.3f} s | {x.cpu:.3f} s |")
