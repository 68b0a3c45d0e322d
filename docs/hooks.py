"""mkdocs hook: pages that live beside the code, such as a builder's README, become part of the site."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    **{f"tfds_builders/{p.parent.name}/README.md": f"datasets/{p.parent.name}.md"
       for p in sorted(ROOT.glob("tfds_builders/*/README.md"))},
    "launch/README.md": "launch.md",
    "benchmarks/RESULTS.md": "measured.md",
    "CHANGELOG.md": "changelog.md",
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links between files of the repository links between pages of the site.

    A link to a file that is no page, such as code, becomes plain text.
    """
    here = page.file.src_uri
    source = next((s for s, p in PAGES.items() if p == here), f"docs/{here}")

    def site_link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = ((ROOT / source).parent / target).resolve().relative_to(ROOT).as_posix()
        if path in PAGES:
            found = PAGES[path]
        elif path.startswith("docs/"):
            found = path.removeprefix("docs/")
        else:
            return text
        return f"[{text}]({'../' * here.count('/')}{found}{anchor or ''})"

    return re.sub(
        r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)", site_link, markdown
    )
