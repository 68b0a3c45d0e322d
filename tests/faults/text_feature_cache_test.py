"""The text feature cache under faults, in full numbers; tests/data has short versions."""

import errno
import pathlib
import subprocess

import pytest

from coco_jax.data import feature_shards, text_feature_cache
from tests.helpers import caches, runs

pytestmark = pytest.mark.faults
TEXTS = [f"text {n}" for n in range(40)]


@pytest.mark.parametrize("delay", [0, 0.005])
@pytest.mark.parametrize(
    "texts", [(TEXTS[:20], TEXTS[20:]), (TEXTS[:25], TEXTS[15:]), (TEXTS, TEXTS)]
)
def test_300_times_two_processes_write_at_the_same_time(tmp_path, delay, texts):
    caches.race_of_processes(tmp_path, texts, 300, delay)


def test_100_times_eight_processes_write_at_the_same_time(tmp_path):
    caches.race_of_processes(tmp_path, [TEXTS[4 * n : 4 * n + 6] for n in range(8)], 100, 0.005)


@pytest.mark.parametrize("believed", [True, False])
def test_300_times_two_runs_write_without_working_locks(tmp_path, monkeypatch, believed):
    caches.break_locks(monkeypatch, believed)
    for trial in range(300):
        caches.race(tmp_path / str(trial), (TEXTS[:25], TEXTS[15:]), delay=0.002)


def test_features_are_the_same_after_200_flipped_bits(tmp_path):
    caches.check_bit_flips(tmp_path, 200, seed=1)


@pytest.mark.parametrize("shard_rows", [1, 7, 40])
def test_kill_at_every_step_of_writing(tmp_path, monkeypatch, shard_rows):
    size = shard_rows * feature_shards.row_type(caches.WIDTH).itemsize
    monkeypatch.setattr(text_feature_cache, "SHARD_BYTES", size)
    kills = 0
    while caches.killed(tmp_path / str(kills), TEXTS, kills, size):
        caches.fill(tmp_path / str(kills), TEXTS)
        assert caches.files(tmp_path / str(kills)) == []
        kills += 1
    assert kills == 5 * (1 + -(-40 // shard_rows))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_error_at_every_step_of_writing(tmp_path, monkeypatch, code):
    size = 3 * feature_shards.row_type(caches.WIDTH).itemsize
    monkeypatch.setattr(text_feature_cache, "SHARD_BYTES", size)
    assert caches.fail_at_every_step(tmp_path, code, monkeypatch) >= 20


def test_command_on_a_full_disk_exits_with_one_line_and_continues_later(data_dir, tmp_path):
    data, disk = tmp_path / "data", tmp_path / "data" / "text_features"
    disk.mkdir(parents=True)
    for built in pathlib.Path(data_dir).iterdir():
        if built.name != disk.name:
            (data / built.name).symlink_to(built)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        config = runs.write_config(
            tmp_path / "c.py", str(data), text_tower__trainable="none", optimizer__steps=2
        )
        done = runs.call(*runs.command(config, tmp_path / "run"))
        assert done.returncode == 2 and "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("coco_jax.main: ")]
        assert "cannot be written (No space left on device)" in line
        assert not list(disk.glob("*/*.partial"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        done = runs.call(*runs.command(config, tmp_path / "run"))
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
