"""Reading only regular files: a FIFO would block, and a device would never end."""

import errno
import os
import pathlib

import pytest

from coco_jax import files


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_content_of_a_regular_file_is_read_also_through_a_link(tmp_path):
    (tmp_path / "a").write_bytes("ä\r\n".encode())
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", str(tmp_path / "b")):
        assert files.read_text(path) == "ä\r\n" and files.read_bytes(path) == b"\xc3\xa4\r\n"
    assert files.check_tree(tmp_path) == 8


@pytest.mark.parametrize("read", [files.open_regular, files.read_bytes, files.read_text])
def test_fifo_device_and_folder_are_an_error_at_once(fifo, tmp_path, read):
    for path in (fifo, "/dev/zero", tmp_path):
        with pytest.raises(OSError, match=f"not a regular file: '{path}'"):
            read(path)


def test_fifo_in_a_folder_is_found(fifo, tmp_path):
    with pytest.raises(OSError, match=r"not a regular file: '.*/fifo'"):
        files.check_tree(tmp_path)


def test_file_above_the_limit_is_an_error_and_is_not_read_whole(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # without blocks on the disk
    with pytest.raises(OSError, match=r"larger than 1,000 bytes: '.*/large'"):
        files.read_text(tmp_path / "large", limit=1_000)


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_file_that_cannot_be_stored_leaves_nothing(tmp_path, monkeypatch, fails):
    path = tmp_path / "new" / "a[1].model"

    def full(self, *args):
        if fails == "write_bytes":
            self.touch()  # the disk is full after the first block
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((pathlib.Path, fails) if fails == "write_bytes" else (os, fails)), full)
        files.store(path, b"12")
    assert list(path.parent.iterdir()) == []
    (path.parent / "a[1].model.0123.partial").touch()  # of a process that was killed
    (path.parent / "b.model.0123.partial").touch()
    files.store(path, b"12")
    assert path.read_bytes() == b"12"
    assert sorted(p.name for p in path.parent.iterdir()) == ["a[1].model", "b.model.0123.partial"]
