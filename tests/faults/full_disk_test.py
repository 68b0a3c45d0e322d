"""A run on a disk that is full, again and again, at many places of the run."""

import os
import pathlib
import subprocess

import pytest

from tests.helpers import kills, runs

GROWTH = 1.12  # of the disk after each error


class SmallDisk:
    """A tmpfs of a given size."""

    def __init__(self, folder: pathlib.Path, size: int):
        self.folder, self.size = folder, size
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("cannot mount a tmpfs, which needs root")

    def grow(self) -> None:
        self.size = int(self.size * GROWTH)
        remount = ["mount", "-o", f"remount,size={self.size}", self.folder]
        subprocess.run(remount, check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    small = SmallDisk(tmp_path / "disk", 1 << 12)
    yield small
    small.close()


@pytest.mark.faults
def test_disk_that_is_full_at_many_places_of_a_run_is_one_line_and_nothing_is_lost(
    disk, data_dir, tmp_path, compiled
):
    """The cached tokenizer and text features are on this disk, too."""
    settings = dict(
        optimizer__steps=4, checkpoint_every=1, text_tower__trainable="none", text_tower__depth=1
    )
    ample = tmp_path / "ample"
    ample.mkdir()
    config = runs.write_config(
        tmp_path / "ample.py", str(kills.own_data(data_dir, ample)), **settings
    )
    whole = runs.call(*runs.command(config, ample / "run"))
    assert whole.returncode == 0, whole.stderr

    config = runs.write_config(
        tmp_path / "small.py", str(kills.own_data(data_dir, disk.folder)), **settings
    )
    workdir = disk.folder / "run"
    errors: list[str] = []
    last = 0
    while (done := runs.call(*runs.command(config, workdir))).returncode:
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("coco_jax.main: ")]
        assert "free some space" in line.lower()
        errors.append(line)
        steps = [int(path.name) for path in runs.checkpoints(workdir / kills.RUN)]
        assert max(steps, default=0) >= last
        last = max(steps, default=0)
        disk.grow()
    print(*errors, sep="\n")
    assert len(errors) >= 50 and len({line.split(":")[1] for line in errors}) > 3
    assert kills.outcome(workdir / kills.RUN) == kills.outcome(ample / "run" / kills.RUN)
    assert not kills.litter(workdir, disk.folder / "data")
    assert sorted(os.listdir(workdir / kills.RUN / "checkpoints")) == ["3", "4"]
