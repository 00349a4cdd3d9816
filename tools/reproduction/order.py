"""Whether the paper's order holds between two cells, judged by the spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student

from reproduction.cells import Cell, pairs

CONFIDENCE = 0.95

Verdict = Literal["holds", "does not hold", "within error", "one seed", "not measured"]
Measured = Mapping[Cell, Sequence[float]]
"""Per cent, by seed in ascending order; a cell that is not scored is not there."""


@dataclass(frozen=True)
class Comparison:
    """Two cells, the one that is better in the paper first; differences in points."""

    better: Cell
    worse: Cell
    difference: float | None
    """Ours; positive where our order is the paper's. None where one of them is not measured."""
    error: float | None
    """Half of the 95 % interval of `difference`; None where one seed gives no spread."""
    verdict: Verdict

    @property
    def paper(self) -> float:
        return self.better.paper - self.worse.paper


@dataclass(frozen=True)
class Spread:
    """The standard deviation over seeds, pooled over all cells, and its degrees of freedom."""

    deviation: float
    freedom: int

    def error(self, seeds: int) -> float | None:
        """Half of the 95 % interval of a mean over `seeds`."""
        return half_interval(self.deviation / math.sqrt(seeds), self.freedom)


def half_interval(standard_error: float, freedom: int) -> float | None:
    """By Student's t; None without a degree of freedom."""
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * standard_error if freedom else None


def spread(measured: Measured) -> Spread:
    """Pooled over the distinct runs: a model that stands in several tables counts once."""
    distinct = {(cell.run, cell.phase, cell.view): values for cell, values in measured.items()}
    squares = freedom = 0.0
    for values in distinct.values():
        squares += statistics.pvariance(values) * len(values)
        freedom += len(values) - 1
    return Spread(math.sqrt(squares / freedom) if freedom else math.nan, int(freedom))


def compare(cells: Sequence[Cell], measured: Measured) -> list[Comparison]:
    """Every pair of cells that the paper compares.

    Cells of one run (another view of the same weights, or the same run further on) are compared seed by seed;
    others by their means, with the pooled spread.
    """
    pooled = spread(measured)
    return [_compared(better, worse, measured, pooled) for better, worse in pairs(cells)]


def _compared(better: Cell, worse: Cell, measured: Measured, pooled: Spread) -> Comparison:
    ours, theirs = measured.get(better), measured.get(worse)
    if not ours or not theirs:
        return Comparison(better, worse, None, None, "not measured")
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    if better.run == worse.run:
        each = [one - other for one, other in zip(ours, theirs, strict=True)]
        deviation = statistics.stdev(each) if len(each) > 1 else math.nan
        error = half_interval(deviation / math.sqrt(len(each)), len(each) - 1)
    else:
        error = half_interval(pooled.deviation * math.sqrt(1 / len(ours) + 1 / len(theirs)), pooled.freedom)
    if error is None:
        return Comparison(better, worse, difference, None, "one seed")
    if abs(difference) <= error:
        return Comparison(better, worse, difference, error, "within error")
    return Comparison(better, worse, difference, error, "holds" if difference > 0 else "does not hold")
