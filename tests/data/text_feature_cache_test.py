"""The text feature cache: contents, sampling, damage, full disks, other runs, several processes."""

import errno
import os
import pathlib
import shutil
import subprocess
import threading

import numpy as np
import pytest

from coco_jax.data import feature_shards, text_feature_cache
from coco_jax.errors import UserError
from tests.helpers import caches
from tests.helpers.caches import WIDTH, encode, fill

TEXTS = [f"text {n}" for n in range(30)]


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of ten texts."""
    monkeypatch.setattr(
        text_feature_cache, "SHARD_BYTES", 10 * feature_shards.row_type(WIDTH).itemsize
    )


def shards(folder) -> list[pathlib.Path]:
    return [folder / name for name in feature_shards.names(folder)]


def test_cached_features_are_those_of_the_tower_in_bfloat16(tmp_path, small_shards):
    texts = [f"a text {n}" for n in range(10)] + ["", "日本語 🤸", "a text 3"]
    cache = text_feature_cache.fill(tmp_path / "bank", texts, encode, WIDTH, batch=4)
    got = cache.features(texts)
    assert got.dtype == text_feature_cache.BFLOAT16 and got.shape == (13, WIDTH)
    np.testing.assert_array_equal(got, encode(texts).astype(text_feature_cache.BFLOAT16))
    np.testing.assert_allclose(got.astype(np.float32), encode(texts), rtol=2**-8)
    assert [len(shard.features_NW) for shard in cache.shards] == [10, 2]  # each text once
    assert all(isinstance(shard.features_NW, np.memmap) for shard in cache.shards)


def test_only_missing_texts_are_encoded(tmp_path):
    folder = tmp_path / "b"
    assert fill(folder, ["x", "y"]) == ["x", "y"]
    assert fill(folder, ["y", "x"]) == []
    assert fill(folder, ["z", "x", "w", "z"]) == ["z", "w"]
    assert fill(folder, ["w", "x", "y"]) == []


def test_changed_text_is_not_found(tmp_path):
    cache = text_feature_cache.fill(tmp_path / "b", ["a man runs"], encode, WIDTH)
    with pytest.raises(KeyError, match="1 texts are not in the cache"):
        cache.features(["a man runs."])


def test_complete_shards_of_an_interrupted_fill_are_kept(tmp_path, small_shards):
    def interrupted(texts):
        if "text 25" in texts:
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        text_feature_cache.fill(tmp_path, TEXTS, interrupted, WIDTH, batch=5)
    assert fill(tmp_path, TEXTS) == TEXTS[20:]


def test_features_that_are_not_finite_are_an_error_and_are_not_stored(tmp_path):
    for value in (np.nan, np.inf, 3.4e38):  # the last is infinite in bfloat16
        with pytest.raises(UserError, match="features that are not finite"):
            text_feature_cache.fill(
                tmp_path, ["x"], lambda texts, v=value: np.full((len(texts), WIDTH), v), WIDTH
            )
    assert not feature_shards.names(tmp_path)


def test_sampler_draws_features_of_the_descriptions_of_each_class(tmp_path, monkeypatch):
    monkeypatch.setattr(
        text_feature_cache, "SHARD_BYTES", 2 * feature_shards.row_type(WIDTH).itemsize
    )
    texts = {"run": ["a", "b", "c"], "jump": ["d"], "swim": ["e", "f"]}
    cache = text_feature_cache.fill(
        tmp_path / "b", [t for some in texts.values() for t in some], encode, WIDTH
    )
    drawn = cache.sampler(texts, ["swim", "run", "jump"])
    feature = {t: encode([t])[0].astype(text_feature_cache.BFLOAT16).tobytes() for t in "abcdef"}
    found = drawn.draw(np.random.default_rng(0), 50)
    assert found.shape == (3, 50, WIDTH) and found.dtype == text_feature_cache.BFLOAT16
    for rows_MW, name in zip(found, ("swim", "run", "jump"), strict=True):
        assert {row.tobytes() for row in rows_MW} == {feature[t] for t in texts[name]}
    first, shown = drawn.first(2)
    assert shown.tolist() == [[True, True], [True, True], [True, False]]
    assert first[1, 1].tobytes() == feature["b"]
    with pytest.raises(UserError, match="1 of 1 classes have no description"):
        cache.sampler(texts, ["fly"])


def test_key_depends_on_every_part_and_on_their_boundaries():
    keys = {
        text_feature_cache.key(parts)
        for parts in ([b"a", b"b"], [b"ab", b""], [b"", b"ab"], [b"a", b"c"], [b"a"])
    }
    assert len(keys) == 5


# Damage.


def test_shard_with_half_of_its_rows_zeroed_is_encoded_again(tmp_path, capsys):
    fill(tmp_path, TEXTS[:20])
    fill(tmp_path, TEXTS)
    first, second = shards(tmp_path)
    data = first.read_bytes()
    first.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert fill(tmp_path, TEXTS) == TEXTS[:20]
    assert f"{first}: THE FILE IS DAMAGED" in capsys.readouterr().err
    assert second in shards(tmp_path) and fill(tmp_path, TEXTS) == []
    assert "DAMAGED" not in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_truncated_shard_is_encoded_again(tmp_path, size):
    fill(tmp_path, TEXTS)
    (path,) = shards(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert fill(tmp_path, TEXTS) == TEXTS
    assert caches.files(tmp_path) == [] and len(shards(tmp_path)) == 1


def test_features_are_the_same_after_any_flipped_bit(tmp_path):
    caches.check_bit_flips(tmp_path, 30)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_shard_that_is_not_a_file_is_an_error(tmp_path, make):
    fill(tmp_path, TEXTS)
    (path,) = shards(tmp_path)
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=f"{path}: cannot be read"):
        fill(tmp_path, TEXTS)


def test_cache_of_the_format_without_checksums_is_encoded_again(tmp_path, capsys):
    np.save(tmp_path / "features.npy", np.zeros((30, WIDTH), np.uint16))
    np.save(tmp_path / "digests.npy", text_feature_cache.digests(TEXTS))
    assert fill(tmp_path, TEXTS) == TEXTS
    assert "of an older format without checksums" in capsys.readouterr().err
    assert caches.files(tmp_path) == []


# Interruptions and full disks.


def test_after_a_kill_at_any_step_of_writing_the_next_fill_is_right_and_leaves_no_litter(tmp_path):
    kills = left = 0
    while caches.killed(tmp_path / str(kills), TEXTS[:3], kills):
        folder = tmp_path / str(kills)
        left += bool(caches.files(folder))
        fill(folder, TEXTS[:3])
        assert caches.files(folder) == []
        kills += 1
    assert kills == 10  # open, write, fsync, rename, fsync of the folder: of about.json and a shard
    assert left >= 4


def test_litter_of_a_killed_writer_is_removed_although_nothing_is_missing(tmp_path):
    fill(tmp_path, TEXTS)
    (tmp_path / f"000002-{'0' * 32}.npy.abc{feature_shards.PARTIAL}").write_bytes(b"half")
    assert fill(tmp_path, TEXTS) == [] and caches.files(tmp_path) == []


def test_file_of_a_live_writer_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_shards, "LOCK_SECONDS", 0.3)
    fill(tmp_path, TEXTS[:1])
    writing, proceed = threading.Event(), threading.Event()

    def event(step: str) -> None:
        if step == "fsync" and threading.current_thread().name == "slow":
            writing.set()
            assert proceed.wait(30)

    with caches.at_step(monkeypatch, event):
        done = []
        slow = threading.Thread(
            target=lambda: done.append(fill(tmp_path, TEXTS[:9])), name="slow", daemon=True
        )
        slow.start()
        assert writing.wait(30)
        (partial,) = caches.files(tmp_path)
        assert fill(tmp_path, TEXTS[:1]) == []
        assert fill(tmp_path, TEXTS[9:12]) == TEXTS[9:12]  # without the lock
        assert caches.files(tmp_path) == [partial]
        proceed.set()
        slow.join(30)
    assert done == [TEXTS[1:9]]
    assert fill(tmp_path, TEXTS[:12]) == [] and caches.files(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_error_at_any_step_of_writing_is_one_line_and_leaves_no_partial_file(
    tmp_path, monkeypatch, code
):
    assert caches.fail_at_every_step(tmp_path, code, monkeypatch) >= 6


def test_full_disk_is_one_line_and_what_was_written_is_kept(tmp_path, small_shards):
    """On a real disk of 64 KiB."""
    disk, reserve = tmp_path / "disk", tmp_path / "disk" / "reserve"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        reserve.write_bytes(bytes(52 << 10))
        with pytest.raises(
            UserError, match=r"cannot be written .No space left on device.; 30 text"
        ):
            fill(disk / "b", TEXTS)
        assert caches.files(disk / "b") == [] and 0 < len(shards(disk / "b")) < 3
        kept = 10 * len(shards(disk / "b"))
        reserve.unlink()
        assert fill(disk / "b", TEXTS) == TEXTS[kept:]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # files are mapped


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"):
        fill(tmp_path / "file" / "b", TEXTS)


# Independent runs.


@pytest.mark.parametrize("overlap", [0, 5])
def test_two_runs_that_write_at_the_same_time_both_find_their_texts(tmp_path, overlap):
    for trial in range(20):
        caches.race(tmp_path / str(trial), (TEXTS[: 10 + overlap], TEXTS[10:20]), delay=0.002)


@pytest.mark.parametrize("believed", [True, False])
def test_runs_whose_locks_do_not_exclude_each_other_still_find_their_texts(
    tmp_path, monkeypatch, believed
):
    """If locks are believed to work, the runs remove each other's temporary files."""
    caches.break_locks(monkeypatch, believed)
    for trial in range(10):
        writers = [TEXTS[4 * n : 4 * n + 6] for n in range(4)]
        caches.race(tmp_path / str(trial), writers, delay=0.002)


def test_first_features_of_a_text_stay_valid_when_others_are_added(tmp_path):
    """As after a run with another mesh, whose features differ by rounding."""
    before = text_feature_cache.fill(tmp_path, ["x"], encode, WIDTH).features(["x"])
    text, zeros = (
        text_feature_cache.digests(["x"]),
        np.zeros((1, WIDTH), text_feature_cache.BFLOAT16),
    )
    for other in range(20):  # some of their hashes are lower, some higher
        feature_shards.publish(tmp_path, feature_shards.pack(text, zeros + other), ())
        after = text_feature_cache.fill(tmp_path, ["x"], encode, WIDTH).features(["x"])
        assert after.tobytes() == before.tobytes()


def test_run_uses_the_features_that_it_will_find_when_it_is_resumed(tmp_path):
    """Another run adds other features of the text while this one encodes it."""
    data = feature_shards.pack(
        text_feature_cache.digests(["x"]), np.ones((1, WIDTH), text_feature_cache.BFLOAT16)
    )

    def overtaken(texts):
        feature_shards.publish(tmp_path, data, ())
        return encode(texts)

    used = text_feature_cache.fill(tmp_path, ["x"], overtaken, WIDTH).features(["x"])
    resumed = text_feature_cache.fill(tmp_path, ["x"], encode, WIDTH).features(["x"])
    assert used.tobytes() == resumed.tobytes()


def test_file_that_another_run_has_mended_is_not_removed(tmp_path):
    fill(tmp_path, TEXTS)
    (path,) = shards(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])

    def mended(texts):
        path.write_bytes(whole)
        return encode(texts)

    text_feature_cache.fill(tmp_path, TEXTS[:5], mended, WIDTH)
    assert fill(tmp_path, TEXTS) == []


# Several processes of one run, as threads.


@pytest.fixture(params=["shared", "separate"])
def folders(request, tmp_path):
    """The folders of two processes: one that they share, or one for each."""
    names = ("a/b", "a/b") if request.param == "shared" else ("a/b", "c/b")
    return [tmp_path / name for name in names]


def same_features(results) -> None:
    for cache in results:
        assert isinstance(cache, text_feature_cache.TextFeatureCache), cache
        caches.check(cache, TEXTS)


@pytest.mark.parametrize("cached", [0, 10, 20, 30])
def test_processes_encode_the_same_missing_texts_and_write_once_on_each_disk(
    folders, small_shards, cached
):
    for folder in set(folders):
        if cached:
            fill(folder, TEXTS[:cached])
    results, encoded = caches.fill_together(folders, [TEXTS] * 2)
    same_features(results)
    assert encoded == [TEXTS[cached:]] * 2
    for folder in folders:
        assert len(shards(folder)) == 3 and caches.files(folder) == []


@pytest.mark.parametrize("cached", [0, 1])
def test_texts_that_only_one_disk_has_are_encoded_by_all(tmp_path, cached):
    folders = [tmp_path / "a" / "b", tmp_path / "c" / "b"]
    fill(folders[cached], TEXTS[:20])
    results, encoded = caches.fill_together(folders, [TEXTS] * 2)
    same_features(results)
    assert encoded == [TEXTS] * 2
    results, encoded = caches.fill_together(folders, [TEXTS] * 2)
    same_features(results)
    assert encoded == [[], []]


def test_processes_use_the_same_features_where_their_disks_differ_by_rounding(tmp_path):
    """One host has features of another mesh; both must use the same, bit for bit."""
    folders = [tmp_path / "a" / "b", tmp_path / "c" / "b"]
    ones = np.ones((30, WIDTH), text_feature_cache.BFLOAT16)
    for folder, value in zip(folders, (1, 2), strict=True):
        data = feature_shards.pack(text_feature_cache.digests(TEXTS), ones * value)
        feature_shards.publish(folder, data, ())
    results, _ = caches.fill_together(folders, [TEXTS] * 2)
    same_features(results)


@pytest.mark.parametrize("victim", [0, 1])
def test_damage_that_one_process_sees_is_mended_by_all(folders, small_shards, victim):
    for folder in set(folders):
        fill(folder, TEXTS)
    caches.flip_bit(shards(folders[victim])[1], 3000)
    results, encoded = caches.fill_together(folders, [TEXTS] * 2)
    same_features(results)
    assert encoded == [TEXTS[10:20]] * 2
    assert caches.fill_together(folders, [TEXTS] * 2)[1] == [[], []]
    assert all(len(shards(folder)) == 3 for folder in folders)


@pytest.mark.parametrize("victim", [0, 1])
def test_error_of_one_process_ends_all(tmp_path, victim):
    folders = [tmp_path / "a" / "b", tmp_path / "c" / "b"]
    (tmp_path / "ac"[victim]).touch()
    results, _ = caches.fill_together(folders, [TEXTS] * 2)
    assert all(isinstance(error, UserError) and "\n" not in str(error) for error in results)
    assert "Not a directory" in str(results[victim])
    assert str(results[1 - victim]) == f"process {victim}: {results[victim]}"


def test_full_disk_at_any_step_ends_both_processes(folders, monkeypatch):
    for at in range(100):
        left = iter(range(at))

        def event(step: str, left=left) -> None:
            if next(left, None) is None and step != "replace":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with caches.at_step(monkeypatch, event):
            results, _ = caches.fill_together(folders, [TEXTS[:4]] * 2)
        failed = [isinstance(result, UserError) for result in results]
        if not any(failed):
            break
        assert all(failed) and all("No space left" in str(error) for error in results)
        for folder in set(folders):
            assert not folder.exists() or caches.files(folder) == []
            shutil.rmtree(folder, ignore_errors=True)
    assert at >= 6


def test_processes_with_different_texts_are_an_error_of_all(folders):
    results, encoded = caches.fill_together(folders, [TEXTS, TEXTS[:-1]])
    assert all("the processes have different texts" in str(error) for error in results)
    assert encoded == [[], []]


def test_process_that_sees_an_old_list_of_files_opens_those_of_process_0(tmp_path, monkeypatch):
    """As on a network disk, where lists of files may be a minute old."""
    real = feature_shards.names
    monkeypatch.setattr(
        feature_shards, "names", lambda folder: [] if "old" in folder.parts else real(folder)
    )
    folder = tmp_path / "new" / "b"
    fill(folder, TEXTS[:20])
    (tmp_path / "old").symlink_to(tmp_path / "new")
    results, encoded = caches.fill_together([folder, tmp_path / "old" / "b"], [TEXTS] * 2)
    same_features(results)
    assert encoded == [TEXTS[20:]] * 2
    assert len(shards(folder)) == 2
