"""What is trained and what is scored: runs are jobs with overrides, cells are places in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from flipscale.errors import UserError


@dataclass(frozen=True)
class TrainingRun:
    """One training; with each seed it is a run directory of its own."""

    name: str
    job: str
    """The job file, below `jobs/`."""
    overrides: tuple[str, ...] = ()
    toy_shards: int | None = None
    """At the toy scale: how many shards of the toy data set it reads."""


@dataclass(frozen=True)
class View:
    """How the images are shown when a cell is scored."""

    mask_ratio: float = 0.0
    ensemble: bool = False
    """All the masked views that together show every patch, instead of one of them."""


@dataclass(frozen=True)
class Cell:
    """One figure of a table of the paper: zero-shot ImageNet top-1 in per cent.

    Cells of one row or of one column differ in one thing: these are the pairs that the paper compares.
    """

    table: str
    row: str
    column: str
    paper: float
    run: str
    phase: str | None
    """The model is taken at the end of this phase; of the last one where it is None."""
    view: View = View()
    time: float | None = None
    """The paper's training time over that of the table's first cell, where it says so."""


@dataclass(frozen=True)
class Scale:
    """How big an experiment is made, and what must be told of it."""

    runs: Mapping[str, TrainingRun]
    seeds: int
    """Of every run, unless it is told otherwise."""
    protocol: str
    """In Markdown: what was done, for whoever reads the figures."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, as cells that share their runs."""

    name: str
    title: str
    captions: Mapping[str, str]
    """What each of its tables is about."""
    cells: tuple[Cell, ...]
    toy: Scale
    paper: Scale
    curve: tuple[str, ...] = field(default=())
    """Runs whose accuracy is followed over their training time; the first is what the others are held to."""

    def scale(self, name: str) -> Scale:
        return self.toy if name == "toy" else self.paper

    def cells_of(self, run: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.run == run]


def pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """The pairs of each table that share a row or a column, the paper's better one first."""
    found: list[tuple[Cell, Cell]] = []
    for one, other in combinations(cells, 2):
        together = one.row == other.row or one.column == other.column
        if one.table == other.table and together and one.paper != other.paper:
            found.append((one, other) if one.paper > other.paper else (other, one))
    return found


def experiment(name: str, known: Sequence[Experiment]) -> Experiment:
    """The experiment of this name. Raises UserError for an unknown one."""
    for candidate in known:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in known)
    raise UserError(f"there is no experiment {name!r}; give one of {names}")
