"""The building blocks of a page, independent of the form in which it is rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Tone = Literal["", "good", "bad", "strong"]
"""How a text stands out: green, red or bold; the empty string is plain text."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    order: float | None = None
    """The value by which its column is sorted (default: the text itself)."""
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """The heading of a column."""

    name: str
    numeric: bool = True
    """Whether the cells are aligned to the right."""
    hint: str = ""
    """The text that appears when the pointer rests on the heading."""


@dataclass(frozen=True)
class Table:
    """A table whose rows the reader can sort by each column."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    """The rows, each with one cell per column."""
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str
    """The text; words between backticks are shown as code."""
    missing: bool = False
    """Whether the text says what cannot be shown, why, and how to get it."""


@dataclass(frozen=True)
class PlotBlock:
    """A plotly figure as a JSON document; the page supplies its title and its legend."""

    title: str
    figure: Mapping[str, object]
    caption: str = ""
    height: int = 340
    """The height in pixels."""
    legend: bool = True


@dataclass(frozen=True)
class PlotGrid:
    """Plots that are placed next to each other if the window is wide enough."""

    kind: ClassVar[str] = "plots"
    plots: Sequence[PlotBlock]


@dataclass(frozen=True)
class Picture:
    """A square image that is part of the page."""

    source: str
    """The image as a `data:` URL."""
    label: str
    side: int
    """The side in pixels."""


@dataclass(frozen=True)
class CardLine:
    """A line of text on a card."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Card:
    """Pictures that belong together, with a title and lines of text."""

    pictures: Sequence[Picture]
    title: str
    lines: Sequence[CardLine] = ()


@dataclass(frozen=True)
class Gallery:
    """A grid of cards."""

    kind: ClassVar[str] = "gallery"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Code:
    """The text of a file, folded until the reader opens it."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


Block = Table | Note | PlotGrid | Gallery | Code


@dataclass(frozen=True)
class Section:
    """A titled part of a page."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The fragment of the URL that leads to the section."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    headlines: Sequence[Headline]
    sections: Sequence[Section]
