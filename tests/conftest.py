"""Fixtures for tests of several folders: a trained run, its recognizer, a video file, parsed flags."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

CACHE = os.environ.get("COCO_JAX_CACHE")  # the user's, which some tests replace
# coco_jax is imported in the fixtures: jaxtyping adds its checks after it has loaded conftest files.


@pytest.fixture(scope="session")
def trained_run(build_once, data_dir) -> pathlib.Path:
    """The folder of a trained run, not yet evaluated; its accuracy does not matter."""
    from coco_jax.evaluation.experiment import run
    from conftest import tiny_config

    config = tiny_config(data_dir, data__batch=16, mesh__data=8)
    folder = build_once("trained", lambda folder: run(config, folder, "train"))
    return folder / "full/split1/seed0"


@pytest.fixture(scope="session")
def recognizer(trained_run):
    """The recognizer of the trained run."""
    from coco_jax.recognition.recognizer import Recognizer

    return Recognizer.load(trained_run)


@pytest.fixture(scope="session")
def video_path(tmp_path_factory) -> pathlib.Path:
    """A short video of noise."""
    from coco_jax.data import video as videos

    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    path.write_bytes(videos.encode(frames, 8))
    return path


@pytest.fixture(scope="session")
def sample_videos() -> list[pathlib.Path]:
    """The sample videos of `--samples`: 22 MB are downloaded, unless they are in the user's cache."""
    from coco_jax.data import samples
    from coco_jax.errors import UserError

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COCO_JAX_CACHE", raising=False)
        if CACHE:
            patch.setenv("COCO_JAX_CACHE", CACHE)
        try:
            return samples.fetch()
        except UserError as error:
            pytest.skip(str(error))


@pytest.fixture
def parse(monkeypatch):
    """Parses flags of a command in this process: `parse(main, "--config=demo")`."""
    from absl import flags

    from coco_jax.command import parser

    before = set(flags.FLAGS)

    def forget() -> None:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)

    def parse_arguments(command, *arguments: str) -> list[str]:
        forget()
        command.define_flags()
        argv = ["command", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # where config_flags looks for --config.FIELD
        return parser("command")(argv)

    yield parse_arguments
    forget()


@pytest.fixture
def call_here(parse, capsys, one_device):
    """Runs a command line of coco_jax.main in this process, on one device; otherwise as `runs.call`."""
    from coco_jax import main
    from coco_jax.errors import reported

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(python: str, m: str, module: str, *arguments: str) -> subprocess.CompletedProcess:
        assert module == main.PROGRAM
        parse(main, *arguments)
        code = 0
        try:
            with reported(main.PROGRAM):
                main.command([])
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    yield call
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)
