"""What is trained and what is scored: a run is a job with overrides, a cell is a place in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from flipscale.errors import UserError


@dataclass(frozen=True)
class TrainingRun:
    """One training; each seed gives it a run directory of its own."""

    name: str
    job: str
    """The job file, below `jobs/`."""
    overrides: tuple[str, ...] = ()
    toy_shards: int | None = None
    """Number of shards of the toy data set that the run reads; None at the scale of the paper."""


@dataclass(frozen=True)
class View:
    """How the images are shown to the model when a cell is scored."""

    mask_ratio: float = 0.0
    """Share of the patches that is hidden."""
    ensemble: bool = False
    """Average all masked views that together show every patch, instead of one of them."""


@dataclass(frozen=True)
class Cell:
    """One figure of a table of the paper: zero-shot ImageNet top-1 in per cent.

    The paper compares the cells of one row or of one column, which differ in one setting.
    """

    table: str
    row: str
    column: str
    paper: float
    run: str
    phase: str | None
    """The model is taken at the end of this phase; None stands for the last phase."""
    view: View = View()
    time: float | None = None
    """The paper's training time over that of the table's first cell; None if the paper does not give it."""


@dataclass(frozen=True)
class Scale:
    """The size at which an experiment is run, and what a reader of its figures must know."""

    runs: Mapping[str, TrainingRun]
    seeds: int
    """Seeds of every run, unless --seeds says otherwise."""
    protocol: str
    """What was done, in Markdown."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, as cells that share their runs."""

    name: str
    title: str
    captions: Mapping[str, str]
    """The subject of each table, by the name of the table."""
    cells: tuple[Cell, ...]
    toy: Scale
    paper: Scale
    curve: tuple[str, ...] = field(default=())
    """Runs whose accuracy is measured over their training time; the others are compared with the first."""

    def scale(self, name: str) -> Scale:
        """Return the scale of this name: "toy" or "paper"."""
        return self.toy if name == "toy" else self.paper

    def cells_of(self, run: str) -> list[Cell]:
        """Return the cells that a run is scored for."""
        return [cell for cell in self.cells if cell.run == run]


def compared_pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Return the pairs of each table that share a row or a column, the paper's better cell first."""
    pairs: list[tuple[Cell, Cell]] = []
    for one, other in combinations(cells, 2):
        together = one.row == other.row or one.column == other.column
        if one.table == other.table and together and one.paper != other.paper:
            pairs.append((one, other) if one.paper > other.paper else (other, one))

    return pairs


def find_experiment(name: str, known: Sequence[Experiment]) -> Experiment:
    """Return the experiment of this name.

    Raises:
        UserError: If there is no experiment of this name.
    """
    for candidate in known:
        if candidate.name == name:
            return candidate

    names = ", ".join(candidate.name for candidate in known)
    raise UserError(f"there is no experiment {name!r}; give one of {names}")
