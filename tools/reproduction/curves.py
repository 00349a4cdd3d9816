"""Time to an accuracy, read off curves of accuracy over training time, and the ratio of two such times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reproduction.order import half_interval

Curve = Sequence[tuple[float, float]]
"""(seconds of training, accuracy), in the order of time; before the first one, accuracy 0 at time 0."""

REACHED = 0.9
"""Times are taken to this share of the accuracy that every curve reaches."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of times over several seeds: geometric mean, and its 95 % interval where there are several."""

    mean: float
    low: float | None
    high: float | None
    each: tuple[float, ...]


def crossing(curve: Curve, accuracy: float) -> float | None:
    """Seconds at which the curve first reaches `accuracy`, on the line between two points; None if never."""
    before = (0.0, 0.0)
    for seconds, reached in curve:
        if reached >= accuracy:
            share = (accuracy - before[1]) / (reached - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, reached)
    return None


def common_target(curves: Sequence[Curve]) -> float:
    """An accuracy that every curve reaches: `REACHED` of the lowest of their best ones."""
    return REACHED * min(max((accuracy for _, accuracy in curve), default=0.0) for curve in curves)


def time_ratio(slower: Sequence[Curve], faster: Sequence[Curve], accuracy: float) -> Ratio:
    """Times that `slower` takes to `accuracy` over those of `faster`, seed by seed; all of them reach it."""
    each: list[float] = []
    for one, other in zip(slower, faster, strict=True):
        slow, fast = crossing(one, accuracy), crossing(other, accuracy)
        assert slow is not None, "the target is one that every curve reaches"
        assert fast is not None, "the target is one that every curve reaches"
        each.append(slow / fast)
    return ratio_of(each)


def ratio_of(each: Sequence[float]) -> Ratio:
    """Summarise ratios; the interval is Student's, of their logarithms."""
    logs = [math.log(ratio) for ratio in each]
    mean = statistics.fmean(logs)
    deviation = statistics.stdev(logs) if len(logs) > 1 else math.nan
    half = half_interval(deviation / math.sqrt(len(logs)), len(logs) - 1)
    low, high = (None, None) if half is None else (math.exp(mean - half), math.exp(mean + half))
    return Ratio(math.exp(mean), low, high, tuple(each))
