"""HDF5 files that refer to other files, are huge, or crash the library, are an error."""

import functools
import gzip
import os
import pathlib
import signal
import subprocess

import h5py
import numpy as np
import pytest

from tfds_builders.common import child
from tfds_builders.video_features import hdf5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


@pytest.fixture
def secret(tmp_path):
    """Files whose values must not be read."""
    (tmp_path / "secret.bin").write_bytes(b"secret!!" * 8)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = np.arange(8.0)
    return tmp_path


def external_link(file, secret):
    file["a"] = h5py.ExternalLink(str(secret / "secret.h5"), "/a")


def soft_link(file, secret):
    file["b"] = np.arange(8.0)
    file["a"] = h5py.SoftLink("/b")


def dangling_link(file, secret):
    file["a"] = h5py.SoftLink("/nowhere")


def link_loop(file, secret):
    file["a"] = h5py.SoftLink("/b")
    file["b"] = h5py.SoftLink("/a")


def loop_of_groups(file, secret):
    file["a"] = file["/"]


def external_values(file, secret):
    file.create_dataset("a", (8,), "f8", external=[(str(secret / "secret.bin"), 0, 64)])


def virtual(file, secret):
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource(str(secret / "secret.h5"), "a", (8,))
    file.create_virtual_dataset("a", layout)


def virtual_of_growing_files(file, secret):
    layout = h5py.VirtualLayout((8,), "f8", maxshape=(None,))
    source = h5py.VirtualSource(str(secret / "secret.h5"), "a", (8,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("a", layout)


def objects(file, secret):
    file.create_dataset("a", (2,), h5py.ref_dtype)


def variable_length(file, secret):
    file.create_dataset("a", (2,), h5py.vlen_dtype(np.float32))


def compound(file, secret):
    file["a"] = np.zeros(3, [("x", "f4"), ("y", "f4")])


def complex_numbers(file, secret):
    file["a"] = np.zeros(3, np.complex64)


def datatype(file, secret):
    file["a"] = np.dtype("f4")


def null(file, secret):
    file["a"] = h5py.Empty("f4")


def never_written(file, secret):
    file.create_dataset("a", (1 << 40, 1 << 10), "f4", chunks=(1, 1024))


def bomb(file, secret):
    file.create_dataset("a", (1 << 27,), "f4", chunks=(1 << 20,), compression="gzip")


def huge_chunk(file, secret):
    file.create_dataset("a", (1 << 27,), "f4", chunks=(1 << 27,), compression="gzip")


def unknown_filter(file, secret):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((8,))
    plist.set_filter(h5py.h5z.FILTER_FLETCHER32)
    plist.set_filter(
        307, h5py.h5z.FLAG_OPTIONAL, (9,)
    )  # bzip2, which HDF5 would search on the disk
    space = h5py.h5s.create_simple((8,))
    h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_FLOAT, space, plist)


HOSTILE = {
    external_link: "is a link",
    soft_link: "is a link",
    dangling_link: "is a link",
    link_loop: "is a link",
    loop_of_groups: "is not an array",
    external_values: "are in other files",
    virtual: "are in other files",
    virtual_of_growing_files: "are in other files",
    objects: "store real numbers",
    variable_length: "store real numbers",
    compound: "store real numbers",
    complex_numbers: "store real numbers",
    datatype: "is not an array",
    null: "is not an array",
    never_written: "times the size of the file",
    bomb: "times the size of the file",
    huge_chunk: "has chunks of more than",
    unknown_filter: "other methods than gzip",
}


@pytest.mark.parametrize(
    ("write", "message"), HOSTILE.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_array_that_is_not_plain_numbers_in_the_file_is_an_error(path, secret, write, message):
    with h5py.File(path, "w") as file:
        write(file, secret)
        size = path.stat().st_size
    with h5py.File(path) as file, pytest.raises(ValueError, match=message):
        hdf5.File(file, size).numbers("a")


@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}]
)
def test_plain_and_compressed_numbers_are_read_in_blocks(path, monkeypatch, options):
    want = np.random.default_rng(0).normal(size=(10, 3)).astype("f4")
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=want, chunks=(2, 3), fletcher32=True, **options)
        monkeypatch.setattr(hdf5, "MAX_BLOCK", 4 * 3 * 4)
        found = list(hdf5.blocks(hdf5.File(file, 1000).numbers("a")))
        assert [len(block) for block in found] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate(found), want)
        monkeypatch.setattr(hdf5, "MAX_BLOCK", 11)
        with pytest.raises(ValueError, match="features of one video have 12 bytes"):
            list(hdf5.blocks(file["a"]))


@pytest.mark.parametrize("limit", [64, 1 << 26])  # one id at a time, and all at once
def test_ids_are_strings_of_fixed_or_variable_length_or_integers(path, monkeypatch, limit):
    monkeypatch.setattr(hdf5, "MAX_BLOCK", limit)
    with h5py.File(path, "w") as stored:
        stored["fixed"] = np.array(["a", "bc"], "S")
        stored["variable"] = ["a", "bä"]
        stored["integers"] = [7, 8]
        stored["matrix"] = [["a"], ["b"]]
        stored["numbers"] = [0.5]
        stored["long"] = ["a" * 1001]
        file = hdf5.File(stored, 3000)
        assert list(file.ids("fixed")) == ["a", "bc"]
        assert list(file.ids("variable")) == ["a", "bä"]
        assert list(file.ids("integers")) == ["7", "8"]
        for name in ("matrix", "numbers"):
            with pytest.raises(ValueError, match="not a list of strings"):
                list(file.ids(name))
        with pytest.raises(ValueError, match="an id of 1,001 bytes"):
            list(file.ids("long"))


@pytest.mark.parametrize("features", ["vectors", "frames", "numbers", "empty"])
def test_child_process_gives_the_wanted_ids_and_their_features(path, features):
    shape = {"vectors": (5, 4), "frames": (5, 3, 4), "numbers": (5,), "empty": (5, 0)}[features]
    x = np.random.default_rng(0).normal(size=shape)
    with h5py.File(path, "w") as file:
        file["features"], file["ids"] = x, list("abcde")
    want = x.mean(1) if features == "frames" else x
    for wanted in (["d", "absent", "b"], ["absent"]):
        got = dict(hdf5.read(path, wanted))
        assert list(got) == sorted(set(wanted) - {"absent"})
        for name, row in got.items():
            assert row.dtype == np.float32
            np.testing.assert_allclose(row, want["abcde".index(name)], rtol=1e-6)


@pytest.mark.parametrize("name", ["crash", "hang"])
def test_file_on_which_the_library_crashes_or_hangs_is_an_error(path, monkeypatch, name):
    """Two files of 16 videos in which some bytes were changed; HDF5 1.14 does not survive them.

    The child starts with SIGPROF ignored, as it does if a library in the parent ignores the signal.
    """
    monkeypatch.setattr(child, "CPU_SECONDS", 1)
    popen = functools.partial(
        subprocess.Popen, preexec_fn=lambda: signal.signal(signal.SIGPROF, signal.SIG_IGN)
    )
    monkeypatch.setattr(child.subprocess, "Popen", popen)
    stored = pathlib.Path(__file__).with_name(f"{name}.h5.gz")
    path.write_bytes(gzip.decompress(stored.read_bytes()))
    with pytest.raises(ValueError, match=r"crashes on it|for more than 1 s"):
        list(hdf5.read(path, [f"v{n}" for n in range(16)]))


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"garbage" * 99])
def test_damaged_file_is_an_error(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="open file"):
        list(hdf5.read(path, ["a"]))


def test_fifo_and_missing_file_are_an_error(path):
    with pytest.raises(OSError, match="No such file"):
        list(hdf5.read(path, ["a"]))
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        list(hdf5.read(path, ["a"]))
