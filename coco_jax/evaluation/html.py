"""Pieces of HTML pages that need no network: tables, charts as SVG, frames of videos.

Pages are trees of elements, and texts are escaped when a tree is written. So a name from outside, such
as that of an action, cannot become markup.
"""

import base64
import hashlib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from coco_jax.data import video as videos
from coco_jax.printing import printable

Element = ElementTree.Element
Child = Element | str | None
FRAMES, FRAME_HEIGHT, FRAME_QUALITY = 6, 96, 70  # of a video: number, pixels, JPEG quality
SHADES = 10  # of a confusion matrix
NAME = 22  # characters of a class name beside a confusion matrix
MAX_NAMED = 40  # the axes of a larger confusion matrix have no class names
COLORS = 8  # of a timeline; `style` has one rule for each

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --page: #ffffff; --line: #c8d1da;
  --mark: #0072b2; --other: #9aa4ae; --band: #f3f6f9; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9ba6b1; --page: #0f1419;
  --line: #3a434d; --mark: #4fb3e8; --other: #6b7681; --band: #182028; } }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
a { color: var(--mark); } .soft, figcaption, caption { color: var(--soft); }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; } .skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; min-width: min(100%, 36rem); }
.bars { min-width: 0; } .row { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.row figure { flex: 1 20rem; }
caption { text-align: left; padding: .25rem 0; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left; }
thead th { background: var(--band); vertical-align: bottom; } tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 3px solid var(--mark); }
th button::after { content: " \\2195"; opacity: .5; } th[aria-sort] button::after { opacity: 1; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--text); } .mark { fill: var(--mark); } .other { fill: var(--other); }
.axis { stroke: var(--soft); } .grid { stroke: var(--line); } .curve { fill: none; stroke: var(--mark);
  stroke-width: 2; } .dashed { fill: none; stroke: var(--soft); stroke-dasharray: 4 4; }
.c0 { fill: #0072b2; } .c1 { fill: #e69f00; } .c2 { fill: #009e73; } .c3 { fill: #cc79a7; }
.c4 { fill: #d55e00; } .c5 { fill: #56b4e9; } .c6 { fill: #b3a800; } .c7 { fill: #7d5fb2; }
.frames { display: flex; flex-wrap: wrap; gap: 2px; } .frames img { height: auto; width: auto;
  max-height: 6rem; max-width: calc(100% / 6 - 2px); }
.bars { margin: .5rem 0; } .bars th, .bars td { border: 0; padding: .1rem .75rem .1rem 0; }
.clip { border-bottom: 1px solid var(--line); padding: .5rem 0; break-inside: avoid; }
details > summary { cursor: pointer; font-weight: 600; margin: .5rem 0; }
@media print { body { max-width: none; padding: 0; } nav, .skip { display: none; }
  figure, tr, .clip { break-inside: avoid; } }
"""

# Sorts a table by the column whose heading is pressed. Without JavaScript the headings are plain text.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const missing = row => key(row) === "";
      const compare = head.classList.contains("number")
        ? (a, b) => key(a) - key(b) : (a, b) => key(a).localeCompare(key(b));
      body.append(...[...body.rows].sort((a, b) =>
        missing(a) - missing(b) || (rising ? compare(a, b) : compare(b, a))));
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => d.open = true));
"""


def element(tag: str, *children: Child, **attributes: str | float) -> Element:
    """An element of HTML or SVG.

    Args:
      tag: its name.
      *children: elements and texts; None is left out. Control characters in a text are escaped.
      **attributes: `class_` is written as `class`, other `_` as `-`; numbers have at most two decimals.
    """
    made = Element(tag)
    for name, value in attributes.items():
        shown = value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
        made.set(name.rstrip("_").replace("_", "-"), printable(shown))
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + printable(child)
        else:
            made.text = (made.text or "") + printable(child)
    return made


def page(title: str, *content: Child) -> str:
    """A whole page; its security policy allows no network, no plug-ins, and no script but its own."""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
        "base-uri 'none'; form-action 'none'"
    )
    style, script = Element("style"), Element("script")  # their content is not escaped in HTML
    style.text, script.text = STYLE, SCRIPT
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        style,
    )
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("main", element("h1", title), *content, id="content"),
        script,
    )
    tree = element("html", head, body, lang="en")
    return f"<!DOCTYPE html>\n{write(tree)}\n"


def write(tree: Element) -> str:
    """The text of an element."""
    return ElementTree.tostring(tree, encoding="unicode", method="html")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


class Number(NamedTuple):
    """A table cell that is sorted by `value` and shows `shown`."""

    value: float | None
    shown: str


def percent(value: float | None) -> Number:
    """A fraction, shown in percent."""
    return Number(value, "-" if value is None else f"{100 * value:.1f}")


def decimal(value: float) -> Number:
    """A number, shown with three decimals."""
    return Number(value, f"{value:.3f}")


Cell = str | Number | Element


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], sortable: bool = True
) -> Element:
    """A table; the first cell of each row is its heading.

    Args:
      caption: what the table has.
      head: names of the columns.
      rows: their cells, as many as there are columns.
      sortable: whether pressing the name of a column sorts by it.
    """
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and isinstance(rows[0][i], Number) for i in range(len(head))]
    names = [
        element("th", name, scope="col", **({"class_": "number"} if is_number else {}))
        for name, is_number in zip(head, numeric, strict=True)
    ]
    body = [
        element("tr", *(_cell(cell, first=i == 0) for i, cell in enumerate(row))) for row in rows
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *names)),
            element("tbody", *body),
            **({"class_": "sortable"} if sortable else {}),
        ),
        class_="wide",
    )


def _cell(cell: Cell, first: bool) -> Element:
    tag, attributes = ("th", {"scope": "row"}) if first else ("td", {})
    if isinstance(cell, Number):
        attributes["class_"] = "number"
        attributes["data_value"] = "" if cell.value is None else repr(float(cell.value))
        cell = cell.shown
    return element(tag, cell, **attributes)


def bars(guesses: Sequence[tuple[str, float]], marked: str | None, caption: str) -> Element:
    """Actions with a bar for each score in [0, 1]; the marked action is blue."""
    rows = []
    for name, score in guesses:
        width = min(max(score, 0.0), 1.0) * 200
        shade = "mark" if name == marked else "other"
        bar = element("rect", class_=shade, x=0, y=2, width=width, height=10)
        drawing = element(
            "svg", bar, viewBox="0 0 200 14", width=200, height=14, aria_hidden="true"
        )
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                element("td", drawing),
                element("td", f"{score:.1%}", class_="number", data_value=repr(float(score))),
            )
        )
    return element("table", element("caption", caption), element("tbody", *rows), class_="bars")


class Chart:
    """A square chart of the unit square; x and y are fractions, shown in percent."""

    SIDE, LEFT, BOTTOM = 260, 44, 40

    def __init__(self, title: str, x_name: str, y_name: str):
        side, left, bottom = self.SIDE, self.LEFT, self.BOTTOM
        self.svg = element(
            "svg",
            element("title", title),
            viewBox=f"0 0 {side + left + 14} {side + bottom + 12}",
            width=side + left + 14,
            height=side + bottom + 12,
            role="img",
            aria_label=title,
        )
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            x, y = self.at(share, share)
            x0, y0 = self.at(0, 0)
            x1, y1 = self.at(1, 1)
            self.svg.append(element("line", class_="grid", x1=x0, y1=y, x2=x1, y2=y))
            self.svg.append(element("line", class_="grid", x1=x, y1=y0, x2=x, y2=y1))
            label = f"{100 * share:.0f}"
            self.svg.append(element("text", label, x=x, y=y0 + 15, text_anchor="middle"))
            self.svg.append(element("text", label, x=x0 - 6, y=y + 4, text_anchor="end"))
        x, y = self.at(0.5, 0)
        self.svg.append(element("text", x_name, x=x, y=y + 33, text_anchor="middle"))
        middle = self.at(0, 0.5)[1]
        turned = f"rotate(-90 12 {middle:.0f})"
        self.svg.append(
            element("text", y_name, x=12, y=middle, text_anchor="middle", transform=turned)
        )

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point in the drawing."""
        return self.LEFT + x * self.SIDE, 8 + (1 - y) * self.SIDE

    def line(self, points: Iterable[tuple[float, float]], kind: str = "curve") -> None:
        """Draws a line through points."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in itertools.starmap(self.at, points))
        self.svg.append(element("polyline", class_=kind, points=places))

    def bar(self, low: float, high: float, height: float, title: str) -> None:
        """Draws a bar from `low` to `high` on the x axis."""
        x, y = self.at(low, height)
        size = {"width": (high - low) * self.SIDE - 1, "height": height * self.SIDE}
        self.svg.append(
            element(
                "rect", element("title", title), class_="mark", fill_opacity=0.6, x=x, y=y, **size
            )
        )

    def dot(self, x: float, y: float, title: str) -> None:
        """Draws a point."""
        cx, cy = self.at(x, y)
        self.svg.append(
            element("circle", element("title", title), class_="mark", cx=cx, cy=cy, r=4)
        )


def figure(drawing: Element, caption: str) -> Element:
    """A drawing with its caption."""
    return element("figure", element("div", drawing, class_="wide"), element("figcaption", caption))


def dots(title: str, rows: Mapping[str, Sequence[float]], chance: float) -> Element:
    """Values in [0, 1] of several groups: a dot for each value, a bar at the mean, a line at chance."""
    left, width, step = 130, 420, 26
    height = step * len(rows) + 30
    svg = element(
        "svg",
        element("title", title),
        viewBox=f"0 0 {left + width + 20} {height}",
        width=left + width + 20,
        height=height,
        role="img",
        aria_label=title,
    )
    bottom = step * len(rows) + 4
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + share * width
        svg.append(element("line", class_="grid", x1=x, y1=4, x2=x, y2=bottom))
        svg.append(element("text", f"{100 * share:.0f}", x=x, y=bottom + 16, text_anchor="middle"))
    x = left + chance * width
    line = element("title", f"chance: {100 * chance:.1f}")
    svg.append(element("line", line, class_="dashed", x1=x, y1=4, x2=x, y2=bottom))
    for i, (name, values) in enumerate(rows.items()):
        y = 4 + step * i + step / 2
        svg.append(element("text", shortened(name, 18), x=left - 8, y=y + 4, text_anchor="end"))
        for value in values:
            shown = element("title", f"{name}: {100 * value:.1f}")
            circle = element("circle", shown, class_="other", cx=left + value * width, cy=y, r=4)
            circle.set("fill-opacity", "0.7")
            svg.append(circle)
        mean = left + float(np.mean(values)) * width
        svg.append(element("rect", class_="mark", x=mean - 1.5, y=y - 9, width=3, height=18))
    return svg


def confusion(counts_KK: Int[np.ndarray, "K K"], names: Sequence[str], title: str) -> Element:
    """A confusion matrix: shades are shares of the videos of the true class, which is the row."""
    total_K1 = np.maximum(counts_KK.sum(1, keepdims=True), 1)
    shares_KK = counts_KK / total_K1
    count = len(names)
    side = max(min(18, 560 // max(count, 1)), 1)
    is_named = count <= MAX_NAMED
    longest = max(len(shortened(name, NAME)) for name in names)
    margin = 16 + 7 * longest if is_named else 24
    size = margin + side * count + 8
    cells = element("g", transform=f"translate({margin} {margin}) scale({side})")
    level_KK = np.ceil(shares_KK * SHADES).astype(int)
    for level in range(1, SHADES + 1):
        # One path for all cells of a shade keeps the page small.
        places = "".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(level_KK == level).tolist())
        if places:
            cells.append(element("path", class_="mark", d=places, fill_opacity=level / SHADES))
    frame = element("rect", class_="grid", x=margin, y=margin, width=side * count)
    frame.set("height", str(side * count))
    frame.set("fill", "none")
    svg = element(
        "svg", element("title", title), frame, cells, viewBox=f"0 0 {size} {size}", role="img",
        width=size, height=size, aria_label=title,
    )  # fmt: skip
    if is_named:
        for i, name in enumerate(names):
            middle, shown = margin + side * (i + 0.5), shortened(name, NAME)
            svg.append(element("text", shown, x=margin - 5, y=middle + 4, text_anchor="end"))
            turned = f"rotate(-90 {middle + 4:.1f} {margin - 5})"
            svg.append(element("text", shown, x=middle + 4, y=margin - 5, transform=turned))
    else:
        svg.append(element("text", "true class: rows; predicted class: columns", x=margin, y=15))
    return svg


class Segment(NamedTuple):
    """A part of a video with one action; times are in seconds."""

    start: float
    end: float
    action: str
    score: float


def timeline(segments: Sequence[Segment], duration: float, none: str | None = None) -> Element:
    """A strip with the segments of a video, and a table of them; `none` is the action without colour."""
    width, height = 720, 34
    names = list(dict.fromkeys(s.action for s in segments if s.action != none))
    color = {name: f"c{i % COLORS}" for i, name in enumerate(names)}
    title = (
        f"timeline of {duration:.1f} seconds: {len(segments)} segments, listed in the table below"
    )
    svg = element(
        "svg", element("title", title), viewBox=f"0 0 {width} {height + 18}", width=width,
        height=height + 18, role="img", aria_label=title,
    )  # fmt: skip
    scale = width / max(duration, 1e-9)
    for segment in segments:
        left, size = segment.start * scale, (segment.end - segment.start) * scale
        about = (
            f"{segment.start:.1f} to {segment.end:.1f} s: {segment.action} ({segment.score:.1%})"
        )
        svg.append(
            element(
                "rect",
                element("title", about),
                class_=color.get(segment.action, "other"),
                x=left,
                y=0,
                width=max(size - 1, 1),
                height=height,
            )
        )
    for at in np.linspace(0, duration, 6):
        anchor = "start" if at == 0 else "end" if at == duration else "middle"
        svg.append(element("text", f"{at:.1f}", x=at * scale, y=height + 14, text_anchor=anchor))
    key = [
        element(
            "li",
            element(
                "svg",
                element("rect", class_=color.get(name, "other"), width=12, height=12),
                width=12,
                height=12,
                aria_hidden="true",
            ),
            f" {name}",
        )
        for name in names
    ]
    rows = [
        (
            Number(s.start, f"{s.start:.1f}"),
            Number(s.end, f"{s.end:.1f}"),
            s.action,
            percent(s.score),
        )
        for s in segments
    ]
    listed = table("Segments; times in seconds, scores in percent", ("start", "end", "action", "score"),
                   rows)  # fmt: skip
    return element("div", element("div", svg, class_="wide"), element("ul", *key), listed)


def frames(video: videos.Video, name: str, count: int = FRAMES) -> Element:
    """Evenly spaced frames of a video as small JPEGs.

    Args:
      video: a file, its bytes, or stored frames.
      name: for the descriptions of the pictures.
      count: how many frames.

    Raises:
      VideoError: it cannot be decoded.
    """
    times: list[float] = []

    def choose(info: videos.VideoInfo) -> Float[np.ndarray, " T"]:
        times[:] = videos.sample_times(count, info.duration, "uniform").tolist()
        return np.array(times)

    # The shorter side: a tall video becomes narrower, not larger.
    frames_THWC = videos.decode(video, choose, short_side=FRAME_HEIGHT, name=name)
    return pictures(frames_THWC, times, name)


def pictures(frames_THWC: np.ndarray, times: Sequence[float], name: str) -> Element:
    """Frames, uint8 `T H W 3`, as a row of JPEGs; `times` are in seconds."""
    images = []
    for frame_HWC, time in zip(frames_THWC, times, strict=True):
        image, stored = Image.fromarray(frame_HWC), io.BytesIO()
        image.thumbnail((4 * FRAME_HEIGHT, 2 * FRAME_HEIGHT))
        image.save(stored, "JPEG", quality=FRAME_QUALITY, optimize=True)
        source = f"data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}"
        about = f"{name} at {time:.1f} seconds"
        images.append(element("img", src=source, alt=about, width=image.width, height=image.height))
    return element("div", *images, class_="frames")


def shortened(text: str, length: int) -> str:
    """The text, cut to a number of characters."""
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"
