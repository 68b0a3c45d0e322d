"""The documentation: the site builds without warnings, and the pages name what exists."""

import re
import subprocess
import sys

import pytest

from coco_jax.config import default, flatten
from tests.helpers.runs import ROOT

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "launch/*.md", "benchmarks/*.md", "tfds_builders/*/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"
)


def test_the_site_builds_without_warnings(tmp_path):
    """Strict mode also checks links between pages and to headings."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Recognizer" in (tmp_path / "api" / "index.html").read_text()
    assert (tmp_path / "datasets" / "ucf101_zsar" / "index.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_existing_config_fields_and_files(page):
    text = page.read_text()
    fields = flatten(default().to_dict())
    sections = {name.rpartition(".")[0] for name in fields}
    for field in re.findall(r"config\.([a-z_]+(?:\.[a-z_]+)*)\b(?!\.?py\b|\()", text):
        known = field in fields or field in sections
        assert known or field in ("json", "default", "py"), f"no config field {field!r}"
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"no file {target}"
    for path in re.findall(
        r"`((?:coco_jax|configs|tfds_builders|tests|launch|docs)/[\w./]+)", text
    ):
        assert (ROOT / path).exists(), f"no file {path}"
    for module in re.findall(r"-m ((?:coco_jax|tfds_builders|benchmarks|tests)[\w.]*)", text):
        assert (ROOT / (module.rstrip(".").replace(".", "/") + ".py")).exists(), (
            f"no module {module}"
        )
