"""A page as Markdown: its texts and tables."""

from __future__ import annotations

from flipscale.reporting.page.blocks import Block, Gallery, Note, Page, PlotGrid, Table
from flipscale.terminal import printable


def to_markdown(page: Page) -> str:
    """Render the texts and tables of a page as Markdown; plots and pictures are only named.

    Args:
        page: The page to render.

    Returns:
        The text of the file, with every text of the page escaped.
    """
    lines = [f"# {_inline(page.title)}", "", _inline(page.subtitle), ""]

    for headline in page.headlines:
        detail = f" ({headline.detail})" if headline.detail else ""
        lines.append(f"- **{_inline(headline.value)}** {_inline(headline.label + detail)}")

    for section in page.sections:
        lines += ["", f"## {_inline(section.title)}"]
        for block in section.blocks:
            lines += ["", *_block(block)]

    return "\n".join(lines) + "\n"


def _block(block: Block) -> list[str]:
    """Return the lines of one block."""
    if isinstance(block, Note):
        return [_inline(block.text)]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, PlotGrid):
        return [f"*Plot on the HTML page: {_inline(plot.title)}.*" for plot in block.plots]
    if isinstance(block, Gallery):
        return [
            f"- {_inline(card.title)}{''.join(f'; {_inline(line.text)}' for line in card.lines)}"
            for card in block.cards
        ]
    return [f"{_inline(block.title)}: on the HTML page."]


def _table(table: Table) -> list[str]:
    caption = [_inline(table.caption), ""] if table.caption else []
    head = [_inline(column.name) for column in table.columns]
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_inline(cell.text) for cell in row] for row in table.rows]

    return [*caption, *(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))]


def _inline(text: str) -> str:
    """Escape a text for one line of Markdown, which may itself be rendered as HTML."""
    escaped = (
        printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
    )
    for character in "`*_[]":
        escaped = escaped.replace(character, f"\\{character}")

    return " ".join(escaped.split())
