"""The pieces of pages: escaping, tables, charts, frames."""

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coco_jax.data import video as videos
from coco_jax.evaluation import html
from coco_jax.printing import printable
from tests.helpers.pages import Page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</table></main><h1>x",
    "&lt;b&gt; &amp",
    "'><svg/onload=alert(1)>",
    "</title></style><script>",
    "\u202egnp.exe",
    "\x1b[31m\x00red",
    "]]><!--",
]


def everything(name: str) -> str:
    """A page that has a name from outside in each place for one."""
    counts = np.array([[3, 1], [0, 2]])
    segment = html.Segment(0.0, 1.5, name, 0.75)
    return html.page(
        name,
        html.table(name, [name, "n"], [[name, html.Number(0.5, name)]]),
        html.bars([(name, 0.5), ("other", 0.25)], name, name),
        html.figure(html.confusion(counts, [name, "b"], name), name),
        html.figure(html.dots(name, {name: [0.2, 0.4]}, 0.1), name),
        html.timeline([segment, html.Segment(1.5, 2.0, "b", 0.5)], 2.0, none="b"),
        html.Chart(name, name, name).svg,
        html.pictures(np.zeros((1, 8, 8, 3), np.uint8), [0.5], name),
        html.element("p", name, html.element("b", name), name, class_=name),
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_stands(name):
    """The page has the same elements and attributes as with a plain name."""
    page, plain = Page(everything(name)), Page(everything("juggling"))
    assert [(tag, sorted(a)) for tag, a in page.tags] == [(t, sorted(a)) for t, a in plain.tags]
    assert not any(char in "".join(page.texts) for char in "\x1b\x00\u202e")


@given(st.text(max_size=40))
def test_any_text_is_read_back_as_it_is_printed(name):
    page = Page(html.write(html.element("p", name, title=name)))
    # The parser, as browsers do, reads a carriage return as it is: `printable` has escaped it.
    assert "".join(page.texts) == printable(name)
    assert page.tags == [("p", {"title": printable(name)})]


def test_page_refers_to_nothing_outside_and_its_policy_forbids_that():
    text = everything("juggling")
    page = Page(text)
    assert all(link.startswith(("#", "data:image/jpeg")) for link in page.references())
    assert not re.search(r"https?:|url\(|@import|//", text.replace(base64_of(page), ""))
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy and not [a for _, a in page.tags if "style" in a]


def base64_of(page: Page) -> str:
    (image,) = (a["src"] for tag, a in page.tags if tag == "img")
    return image


def test_cells_have_scopes_captions_and_the_whole_number():
    third = 1 / 3
    page = Page(html.write(html.table("c", ["a", "b"], [["x", html.percent(third)]])))
    (table,) = page.tables
    assert table.caption == "c" and table.head == ["a", "b"]
    assert table.rows[0][1] == ("33.3", third)
    scopes = [a.get("scope") for tag, a in page.tags if tag == "th"]
    assert scopes == ["col", "col", "row"]
    assert html.percent(None) == (None, "-")


def test_confusion_matrix_has_a_cell_for_each_pair_that_occurs():
    counts = np.random.default_rng(0).integers(0, 2, (60, 60)) * 5
    page = Page(html.write(html.confusion(counts, [f"c{i}" for i in range(60)], "t")))
    cells = {
        (int(y), int(x))
        for tag, a in page.tags
        if tag == "path"
        for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", a["d"])
    }
    assert cells == set(map(tuple, np.argwhere(counts).tolist()))


def test_segments_of_a_timeline_have_their_share_of_the_width():
    segments = [html.Segment(0, 1, "a", 0.5), html.Segment(1, 4, "b", 0.9)]
    page = Page(html.write(html.timeline(segments, 4.0)))
    strips = [a for tag, a in page.tags if tag == "rect" and a.get("height") == "34"]
    assert [float(a["width"]) + 1 for a in strips] == [180, 540]
    assert strips[0]["class"] != strips[1]["class"]
    assert [row[2].text for row in page.table("action").rows] == ["a", "b"]


def test_frames_are_small_jpegs_of_the_video_with_their_times(tmp_path):
    frames = np.zeros((16, 48, 96, 3), np.uint8)
    frames[8:] = 255  # the second half is white
    path = tmp_path / "a.mp4"
    path.write_bytes(videos.encode(frames, 8))
    page = Page(html.write(html.frames(path, "a.mp4", 4)))
    images = [a for tag, a in page.tags if tag == "img"]
    assert [a["alt"] for a in images] == [f"a.mp4 at {t} seconds" for t in (0.2, 0.8, 1.2, 1.8)]
    means = []
    for attributes in images:
        data = base64.b64decode(attributes["src"].removeprefix("data:image/jpeg;base64,"))
        image = Image.open(io.BytesIO(data))
        assert image.format == "JPEG" and image.size == (192, 96) and len(data) < 20_000
        means.append(np.asarray(image).mean())
    assert max(means[:2]) < 20 and min(means[2:]) > 230
