"""Time to an accuracy, from curves of accuracy over training time, and the ratio of two such times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reproduction.order import half_interval

Curve = Sequence[tuple[float, float]]
"""Pairs of (seconds of training, accuracy), in the order of time; a curve starts at (0, 0)."""

REACHED = 0.9
"""The target is this share of the accuracy that every curve reaches."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of times over several seeds.

    Attributes:
        mean: The geometric mean.
        low: Lower end of the 95 % interval of the mean; None with a single seed.
        high: Upper end of the interval.
        each: The ratio of each seed.
    """

    mean: float
    low: float | None
    high: float | None
    each: tuple[float, ...]


def crossing(curve: Curve, accuracy: float) -> float | None:
    """Return the seconds at which a curve first reaches `accuracy`, on the line between two points.

    Returns:
        None if the curve never reaches it.
    """
    before = (0.0, 0.0)
    for seconds, reached in curve:
        if reached >= accuracy:
            share = (accuracy - before[1]) / (reached - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, reached)

    return None


def common_target(curves: Sequence[Curve]) -> float:
    """Return an accuracy that every curve reaches: the share `REACHED` of the lowest maximum of a curve."""
    return REACHED * min(max((accuracy for _, accuracy in curve), default=0.0) for curve in curves)


def time_ratio(slower: Sequence[Curve], faster: Sequence[Curve], accuracy: float) -> Ratio:
    """Return the times that `slower` takes to an accuracy over those of `faster`, seed by seed.

    Args:
        slower: One curve per seed.
        faster: One curve per seed, in the same order.
        accuracy: A target that every curve reaches.
    """
    each: list[float] = []
    for one, other in zip(slower, faster, strict=True):
        slow = crossing(one, accuracy)
        fast = crossing(other, accuracy)
        assert slow is not None, "the target is one that every curve reaches"
        assert fast is not None, "the target is one that every curve reaches"
        each.append(slow / fast)

    return summarize_ratios(each)


def summarize_ratios(each: Sequence[float]) -> Ratio:
    """Return the mean of ratios and its interval, which is Student's for their logarithms."""
    logs = [math.log(ratio) for ratio in each]
    mean = statistics.fmean(logs)
    deviation = statistics.stdev(logs) if len(logs) > 1 else math.nan
    half = half_interval(deviation / math.sqrt(len(logs)), len(logs) - 1)
    if half is None:
        return Ratio(math.exp(mean), None, None, tuple(each))

    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), tuple(each))
