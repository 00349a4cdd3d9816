"""The paper's order of two cells: whether it holds here, judged by the spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student

from reproduction.cells import Cell, compared_pairs

CONFIDENCE = 0.95

Verdict = Literal["holds", "does not hold", "within error", "one seed", "not measured"]
Measured = Mapping[Cell, Sequence[float]]
"""Accuracies of each scored cell in per cent, in ascending order of the seeds."""


@dataclass(frozen=True)
class Comparison:
    """Two cells, the one that is better in the paper first; differences are in percentage points."""

    better: Cell
    worse: Cell
    difference: float | None
    """Our difference, positive if our order is the paper's; None if one of the cells is not measured."""
    error: float | None
    """Half of the 95 % interval of `difference`; None if a single seed gives no spread."""
    verdict: Verdict

    @property
    def paper(self) -> float:
        """Return the paper's difference."""
        return self.better.paper - self.worse.paper


@dataclass(frozen=True)
class Spread:
    """The standard deviation over seeds, pooled over all cells, and its degrees of freedom."""

    deviation: float
    freedom: int

    def error(self, seeds: int) -> float | None:
        """Return half of the 95 % interval of a mean over `seeds`; None without a degree of freedom."""
        return half_interval(self.deviation / math.sqrt(seeds), self.freedom)


def half_interval(standard_error: float, freedom: int) -> float | None:
    """Return half of the 95 % interval by Student's t; None without a degree of freedom."""
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * standard_error if freedom else None


def spread(measured: Measured) -> Spread:
    """Pool the spread over the distinct models: a model that is in several tables counts once."""
    distinct = {(cell.run, cell.phase, cell.view): values for cell, values in measured.items()}
    squares = freedom = 0.0
    for values in distinct.values():
        squares += statistics.pvariance(values) * len(values)
        freedom += len(values) - 1

    return Spread(math.sqrt(squares / freedom) if freedom else math.nan, int(freedom))


def compare(cells: Sequence[Cell], measured: Measured) -> list[Comparison]:
    """Compare every pair of cells that the paper compares.

    Cells of one run are compared seed by seed: they are another view of the same weights, or a later point of
    the same run. Other cells are compared by their means, with the pooled spread.
    """
    pooled = spread(measured)
    return [_compare(better, worse, measured, pooled) for better, worse in compared_pairs(cells)]


def _compare(better: Cell, worse: Cell, measured: Measured, pooled: Spread) -> Comparison:
    ours = measured.get(better)
    theirs = measured.get(worse)
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
