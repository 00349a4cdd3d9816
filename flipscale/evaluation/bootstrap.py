"""Intervals of metrics, and paired comparisons of two models, by the bootstrap.

An interval is the range that holds the middle `level` of the values on `resamples` sets. Each is drawn from
the set's images with replacement, and an image brings all of its captions, since these are alike. Two models
are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from flipscale.errors import UserError
from flipscale.evaluation.document import SMALL, Interval
from flipscale.evaluation.metrics import fitting_metric, measure
from flipscale.evaluation.outcomes import Floats, Integers, Outcome

_DRAWS_AT_ONCE = 2**22  # counts of samples that are held together, 32 MiB


@dataclass(frozen=True)
class Difference:
    """Our value less theirs, and the interval of that difference under a paired bootstrap."""

    value: float
    low: float
    high: float


def interval(
    outcome: Outcome, metric: str, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the lowest and the highest value of the middle `level` of the resampled sets.

    Raises:
        UserError: As `measure` does.
    """
    return intervals(outcome, [metric], resamples=resamples, seed=seed, level=level)[metric]


def intervals(
    outcome: Outcome, metrics: Iterable[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the `interval` of several metrics, on the same draws."""
    names = list(metrics)
    values = _resampled(outcome, names, resamples, seed)
    return {name: _middle(values[name], level) for name in names}


def document_intervals(outcome: Outcome, metrics: Iterable[str]) -> dict[str, Interval]:
    """Return the intervals of an evaluation document.

    They are None for sets of more than `document.SMALL` images, for which an interval says little compared
    with what it costs.
    """
    if len(outcome.samples) > SMALL:
        return dict.fromkeys(metrics)
    return {name: [low, high] for name, (low, high) in intervals(outcome, metrics).items()}


def difference(
    ours: Outcome,
    theirs: Outcome,
    metric: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Return by how much our value exceeds theirs; both are resampled together.

    Raises:
        UserError: As `measure` does, and if the two outcomes are not about the same samples.
    """
    if not ours.same_set(theirs):
        raise UserError(
            f"the two models were not scored on the same samples ({len(ours.samples)} and "
            f"{len(theirs.samples)} images); evaluate both on the same files with the same class names"
        )

    our_values = _resampled(ours, [metric], resamples, seed)[metric]
    their_values = _resampled(theirs, [metric], resamples, seed)[metric]
    low, high = _middle(our_values - their_values, level)
    return Difference(measure(ours, metric) - measure(theirs, metric), low, high)


def _resampled(outcome: Outcome, metrics: list[str], resamples: int, seed: int) -> dict[str, Floats]:
    """Return the values (resamples,) of each metric."""
    definitions = {name: fitting_metric(outcome, name) for name in metrics}
    parts = [
        {name: metric.values(outcome, counts) for name, metric in definitions.items()}
        for counts in _draws(len(outcome.samples), resamples, seed)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in metrics}


def _draws(images: int, resamples: int, seed: int) -> Iterator[Integers]:
    """Yield how often each image was drawn, (rows, images), until all resamples are drawn."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // images)

    for start in range(0, resamples, rows):
        here = min(rows, resamples - start)
        drawn = generator.integers(0, images, (here, images))
        drawn += images * np.arange(here)[:, None]  # one row of bins per resample
        yield np.bincount(drawn.ravel(), minlength=here * images).reshape(here, images)


def _middle(values: Floats, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
