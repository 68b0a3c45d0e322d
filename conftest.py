"""Fixtures for all tests: eight CPU devices, the benchmark motion_zsar, a tiny config."""

import contextlib
import gc
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

# Set before jax is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, of models so small that optimising them does not pay.
# Without fusion emitters XLA compiles a training step three times as fast.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
# Flags of the environment come last and win.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {QUICK_COMPILATION} "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# As in `coco_jax.command.run_command`: tracing takes a tenth less time.
gc.set_threshold(50_000)

# Other tests run on the same cores, so the time of one example says nothing.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

ROOT = pathlib.Path(__file__).resolve().parent


# The files that take longest run first, so that the workers end together (--dist=loadfile).
LONGEST = (
    "main_test.py", "benchmark_test.py", "step_test.py", "configs_test.py", "kills_test.py",
    "checkpoint_test.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests by file."""
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory) -> None:
    """All tests and their child processes share one compilation cache.

    It is not read for programs of several devices: see `coco_jax.command.keep_compiled`.
    """
    import jax
    from jax._src import compiler

    read = compiler._cache_read

    def read_for_one_device(module, key, options, backend, devices):
        if len(devices) > 1:
            return None, None
        return read(module, key, options, backend, devices)

    compiler._cache_read = read_for_one_device
    folder = str(tmp_path_factory.getbasetemp().parent / "compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Runs in the block use one of the eight devices: they compile and save in half of the time."""
    import jax

    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield


@pytest.fixture
def one_device() -> Iterator[None]:
    """The runs of a test use one device, for tests in which the number does not matter."""
    with on_one_device():
        yield


@pytest.fixture(scope="session")
def build_once(tmp_path_factory):
    """Returns a function that builds a folder for all workers: `build_once("name", build)`.

    `build` gets the path of the folder. If another worker is building it, the function waits.
    """
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the workers' folders are in one folder

    def folder_of(name: str, build: Callable[[pathlib.Path], Any]) -> pathlib.Path:
        folder = shared / name
        with FileLock(f"{folder}.lock"):
            if not (done := folder.with_suffix(".done")).exists():
                build(folder)
                done.touch()
        return folder

    return folder_of


def build_motion(folder: pathlib.Path) -> None:
    """Builds motion_zsar and its corpus."""
    from tfds_builders.build import build

    for name in ("motion_zsar", "actionhub/motion"):
        build(name, str(folder))


@pytest.fixture(scope="session")
def data_dir(build_once) -> str:
    """The folder with motion_zsar and its corpus, with ten clips of each action instead of forty."""
    from tfds_builders.motion_zsar import language, motion_zsar_dataset_builder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "CLIPS_PER_ACTION", 10)
        patch.setattr(motion_zsar_dataset_builder, "TEST_CLIPS", 2)
        return str(build_once("data", build_motion))


@pytest.fixture(scope="session")
def full_data_dir(build_once) -> str:
    """The folder with the whole of motion_zsar and its corpus."""
    return str(build_once("full_data", build_motion))


@pytest.fixture(scope="session")
def clips() -> pathlib.Path:
    """The folder of real video files, which are not in the repository."""
    folder = ROOT.parent / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip(f"no real clips: {folder} is absent")
    return folder


def tiny_config(data_dir: str, **changes):
    """configs/demo.py, made so small that a step takes milliseconds.

    `changes` set fields, for example `data__batch=8` for `data.batch`.
    """
    from coco_jax.configs import demo

    config = demo.get_config()
    config.sweep.ablation = ()
    config.data.update(dir=data_dir, batch=16)
    config.text.update(descriptions=2, eval_descriptions=4, vocabulary=300, length=16)
    config.video_tower.update(
        frames=4, size=32, patch=16, width=32, heads=2, depth=1, temporal_depth=1
    )
    config.text_tower.update(width=32, heads=2)
    config.model.dim = 32
    config.optimizer.update(steps=6, warmup=2)
    config.update(checkpoint_every=3, log_every=1)
    for name, value in changes.items():
        *parents, field = name.split("__")
        where = config
        for parent in parents:
            where = where[parent]
        where[field] = value
    return config


@pytest.fixture
def tiny(data_dir):
    """A function that makes tiny configs for motion_zsar."""
    return lambda **changes: tiny_config(data_dir, **changes)
