"""Tables and progress on the terminal and in logs.

Tables go to stdout: no cell is cut short, taken for markup, or obeyed by the terminal. Progress goes to
stderr, if that is a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column, Table

from flipscale.terminal import printable

_LOG_WIDTH = 200  # characters; a file or a pipe has no width of its own


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout; cells that are too long for the terminal are folded."""
    wide_console().print(make_table(headings, rows))


def make_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table to print as part of a page; cells that are too long are folded."""
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for row in rows:
        table.add_row(*(printable(cell, keep="") for cell in row))

    return table


def wide_console() -> Console:
    """Return a console on stdout, with room for wide tables if stdout is not a terminal."""
    console = _SafeConsole(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)

    return console


class _SafeConsole(Console):
    """A console that shows characters which would steer the terminal as escapes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable; rich's own control codes are segments of their own kind."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)


class ProgressBar:
    """One bar of a running display."""

    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display = display
        self._task = task

    def advance(self, steps: float) -> None:
        """Move the bar by `steps`."""
        self._display.update(self._task, advance=steps)

    def show(self, completed: float, total: float | None = None) -> None:
        """Move the bar to `completed`, of `total` if that has become known."""
        self._display.update(self._task, completed=completed, total=total)


@contextmanager
def progress_bar(description: str, total: float | None = None) -> Generator[ProgressBar]:
    """Show one bar while the block runs.

    Args:
        description: What the block does: "indexing".
        total: Steps until it is done; None if they become known later.
    """
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as display:
        yield ProgressBar(display, display.add_task(description, total=total))


@contextmanager
def task_bars(*, shown: bool) -> Generator[Callable[[str, int, int], None]]:
    """Show a bar per task while the block runs.

    Args:
        shown: Whether this process shows them: one of several should.

    Yields:
        A function that moves the bar of a task: its description, the steps done, and their total.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with _display(columns, shown) as display:
        tasks: dict[str, TaskID] = {}

        def show(description: str, done: int, total: int) -> None:
            if description not in tasks:
                tasks[description] = display.add_task(description, total=total)
            display.update(tasks[description], completed=min(done, total), total=total)

        yield show


@contextmanager
def image_counts(sets: Iterable[str], *, shown: bool) -> Generator[Callable[[str, int], None]]:
    """Count the images of several evaluation sets while the block runs.

    Args:
        sets: Names of the sets.
        shown: Whether this process shows the counts: one of several should.

    Yields:
        A function that shows how many images of a set are done.
    """
    columns = (
        TextColumn("evaluating {task.description}: {task.completed:.0f} images"),
        TimeElapsedColumn(),
    )
    with _display(columns, shown) as display:
        tasks = {name: display.add_task(name, total=None) for name in sets}

        def show(name: str, images: int) -> None:
            display.update(tasks[name], completed=images)

        yield show


def _display(columns: Sequence[ProgressColumn], shown: bool) -> Progress:
    return Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty()))
