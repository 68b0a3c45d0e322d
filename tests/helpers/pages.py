"""Reads HTML pages that the package writes: checks that tags are balanced; collects tables and links."""

import html.parser
from typing import NamedTuple

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Cell(NamedTuple):
    text: str
    value: float | None  # of the attribute data-value


class Table(NamedTuple):
    caption: str
    head: list[str]
    rows: list[list[Cell]]

    def column(self, name: str) -> dict[str, Cell]:
        """A column's cells by the first cell of their rows."""
        at = self.head.index(name)
        return {row[0].text: row[at] for row in self.rows}


class Page(html.parser.HTMLParser):
    """A parsed page."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.tables: list[Table] = []
        self._cell: list[str] | None = None
        self._value: float | None = None
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append(Table("", [], []))
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th", "caption"):
            stored = attributes.get("data-value")
            self._cell, self._value = [], float(stored) if stored else None

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"{tag} is closed inside {self.open[-3:]}"
        if tag in ("td", "th"):
            self.tables[-1].rows[-1].append(Cell("".join(self._cell), self._value))
        elif tag == "caption":
            self.tables[-1] = self.tables[-1]._replace(caption="".join(self._cell))
        elif tag == "thead":
            found = self.tables[-1]
            found.head.extend(cell.text for cell in found.rows.pop())

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def table(self, column: str) -> Table:
        """The only table with this column."""
        (found,) = (table for table in self.tables if column in table.head)
        return found

    def references(self) -> list[str]:
        """What elements refer to: addresses of links, pictures, scripts."""
        names = ("href", "src", "srcset", "action", "data", "poster", "xlink:href", "background")
        return [value for _, found in self.tags for name, value in found.items() if name in names]
