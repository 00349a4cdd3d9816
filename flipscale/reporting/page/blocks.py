"""What a page is made of, and its two forms: one HTML file that works offline, and Markdown."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    order: float | None = None
    """What its column is sorted by; the text itself by default."""
    tone: str = ""
    """good, bad, or strong: how it stands out."""


@dataclass(frozen=True)
class Column:
    name: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """A paragraph. A `missing` one says what could not be shown, why, and how to have it."""

    kind: ClassVar[str] = "note"
    text: str
    missing: bool = False


@dataclass(frozen=True)
class Plot:
    """A plotly figure as a JSON document; its titles and its legend are the page's."""

    title: str
    figure: dict[str, Any]
    caption: str = ""
    height: int = 340  # pixels
    legend: bool = True


@dataclass(frozen=True)
class Plots:
    """Plots side by side where there is room."""

    kind: ClassVar[str] = "plots"
    plots: Sequence[Plot]


@dataclass(frozen=True)
class Picture:
    source: str
    """A data: address."""
    label: str
    side: int  # pixels


@dataclass(frozen=True)
class Line:
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Card:
    """Pictures that belong together, and what is said of them."""

    pictures: Sequence[Picture]
    title: str
    lines: Sequence[Line] = ()


@dataclass(frozen=True)
class Gallery:
    kind: ClassVar[str] = "gallery"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Code:
    """A file's text, folded."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


Block = Table | Note | Plots | Gallery | Code


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Headline:
    """A figure that stands at the top of the page."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    headlines: Sequence[Headline]
    sections: Sequence[Section]


def to_html(page: Page) -> str:
    """The page as one file: no address is asked for anything, and no script but its own runs.

    Every text is escaped; beyond that, the page's policy lets the browser run only scripts of these digests.
    """
    scripts = [_plotly(), _asset("page.js")]
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    environment = Environment(
        loader=PackageLoader("flipscale.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typed"] = _typed
    return environment.get_template("page.html").render(
        page=page, style=_asset("page.css"), scripts=scripts, script_digests=digests
    )


def _typed(text: str) -> Markup:
    """Text, escaped, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def to_markdown(page: Page) -> str:
    """Texts and tables of the page; plots and pictures are named."""
    lines = [f"# {_inline(page.title)}", "", _inline(page.subtitle), ""]
    for headline in page.headlines:
        detail = f" ({headline.detail})" if headline.detail else ""
        lines.append(f"- **{_inline(headline.value)}** {_inline(headline.label + detail)}")
    for section in page.sections:
        lines += ["", f"## {_inline(section.title)}"]
        for block in section.blocks:
            lines += ["", *_markdown_block(block)]
    return "\n".join(lines) + "\n"


def _markdown_block(block: Block) -> list[str]:
    if isinstance(block, Note):
        return [_inline(block.text)]
    if isinstance(block, Table):
        head = [_inline(column.name) for column in block.columns]
        rule = ["---:" if column.numeric else "---" for column in block.columns]
        rows = [[_inline(cell.text) for cell in row] for row in block.rows]
        caption = [_inline(block.caption), ""] if block.caption else []
        return [*caption, *(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))]
    if isinstance(block, Plots):
        return [f"*Plot on the HTML page: {_inline(plot.title)}.*" for plot in block.plots]
    if isinstance(block, Gallery):
        return [
            f"- {_inline(card.title)}{''.join(f'; {_inline(line.text)}' for line in card.lines)}"
            for card in block.cards
        ]
    return [f"{_inline(block.title)}: on the HTML page."]


def _inline(text: str) -> str:
    """Text as it is, in a line of Markdown that may be shown as HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
    for character in "\\`*_[]":
        if character != "\\":
            escaped = escaped.replace(character, f"\\{character}")
    return " ".join(escaped.split())


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _asset(name: str) -> str:
    return files("flipscale.reporting").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def json_text(document: Any) -> str:
    """A document as JSON that every parser takes: what is not finite becomes null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
