"""Verdicts and ratios of times of the reproduction, from made-up figures."""

from __future__ import annotations

import math

import pytest
from reproduction.cells import Cell
from reproduction.curves import common_target, crossing, summarize_ratios, time_ratio
from reproduction.order import Measured, compare, spread
from scipy import stats

BETTER = Cell("1a", "masked", "top-1", 70.0, "masked", "end")
WORSE = Cell("1a", "plain", "top-1", 69.0, "plain", "end")
TUNED = Cell("1a", "tuned", "top-1", 71.0, "masked", "tuning")


def verdict(measured: Measured) -> str:
    (comparison,) = compare([BETTER, WORSE], measured)
    return comparison.verdict


def test_order_holds_only_beyond_the_error() -> None:
    assert verdict({BETTER: [60.0, 61.0], WORSE: [50.0, 51.0]}) == "holds"
    assert verdict({BETTER: [50.0, 51.0], WORSE: [60.0, 61.0]}) == "does not hold"
    assert verdict({BETTER: [50.0, 60.0], WORSE: [49.0, 61.0]}) == "within error"
    assert verdict({BETTER: [60.0], WORSE: [50.0]}) == "one seed"
    assert verdict({BETTER: [60.0, 61.0]}) == "not measured"


def test_error_is_that_of_students_test_of_two_samples() -> None:
    ours, theirs = [52.0, 55.0, 53.5], [50.0, 49.0, 51.5]
    (comparison,) = compare([BETTER, WORSE], {BETTER: ours, WORSE: theirs})
    judge = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    assert comparison.difference == pytest.approx((judge.low + judge.high) / 2)
    assert comparison.error == pytest.approx((judge.high - judge.low) / 2)


def test_cells_of_one_run_are_compared_seed_by_seed() -> None:
    before, after = [50.0, 60.0, 55.0], [51.0, 61.1, 56.2]  # far apart by seed, always a little better
    (comparison,) = compare([BETTER, TUNED], {BETTER: before, TUNED: after})
    judge = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (comparison.better, comparison.verdict) == (TUNED, "holds")
    assert comparison.error == pytest.approx((judge.high - judge.low) / 2)


def test_model_in_several_tables_counts_once_in_the_spread() -> None:
    again = Cell("1b", "masked", "batch 32k", 70.0, "masked", "end")
    values = {BETTER: [50.0, 52.0], WORSE: [40.0, 40.0]}
    pooled = spread({**values, again: values[BETTER]})
    assert pooled == spread(values)
    assert (pooled.deviation, pooled.freedom) == (pytest.approx(1.0), 2)


def test_crossing_is_on_the_line_between_two_points() -> None:
    curve = [(10.0, 0.2), (20.0, 0.4), (30.0, 0.3), (40.0, 0.5)]
    assert crossing(curve, 0.1) == pytest.approx(5.0)
    assert crossing(curve, 0.3) == pytest.approx(15.0)  # the first time, though it falls back
    assert crossing(curve, 0.4) == pytest.approx(20.0)
    assert crossing(curve, 0.45) == pytest.approx(37.5)
    assert crossing(curve, 0.51) is None


def test_times_are_compared_at_an_accuracy_that_every_run_reaches() -> None:
    slow = [[(10.0, 0.2), (20.0, 0.4)], [(12.0, 0.2), (24.0, 0.4)]]
    fast = [[(5.0, 0.2), (10.0, 0.4)], [(4.0, 0.2), (8.0, 0.6)]]
    target = common_target([*slow, *fast])
    assert target == pytest.approx(0.36)
    ratio = time_ratio(slow, fast, target)
    first, second = 18.0 / 9.0, 21.6 / (4.0 + 4.0 * (0.36 - 0.2) / 0.4)
    assert ratio.each == pytest.approx((first, second))
    assert ratio.mean == pytest.approx(math.sqrt(first * second))
    judge = stats.ttest_1samp([math.log(first), math.log(second)], 0.0).confidence_interval(0.95)
    assert (ratio.low, ratio.high) == (
        pytest.approx(math.exp(judge.low)),
        pytest.approx(math.exp(judge.high)),
    )
    assert summarize_ratios([2.0]).low is None
