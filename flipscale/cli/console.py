"""Tables on the terminal and in logs: nothing in a cell is cut short or taken for markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Column, Table

_LOG_WIDTH = 200  # characters; what is no terminal has no width of its own


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print to stdout, folding cells that a terminal has no room for."""
    wide_console().print(make_table(headings, rows))


def make_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table to print as part of a page."""
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for row in rows:
        table.add_row(*row)
    return table


def wide_console() -> Console:
    """Stdout, wide enough for a table where it is no terminal."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    return console
