"""What hides behind what, what bounds a step, and the delay of the slowest of many GPUs."""

from __future__ import annotations

import pytest

from flipscale.planning.network import Network
from flipscale.planning.step_time import NODE, Pace, Work, seconds_of, slowest, step_time
from flipscale.planning.traffic import Collective, Part

NETWORK = Network(100e9, 10e9)
PACE = Pace(flops=1e12, fp32_flops=1e12, gpus=NODE, network=NETWORK)
WORK = Work(forward=1e12, backward=2e12, loss=0.0)  # one second and two


def sent(part: Part, window: float, seconds: float) -> Collective:
    """Return a collective of about so many seconds on two nodes of one GPU."""
    return Collective("all_gather", int(seconds * 2 * 10e9), 2, 1, 1, part, window)


def test_collective_hides_behind_the_computation_of_its_part() -> None:
    step = step_time(WORK, [sent("backward", 1, 1.5)], PACE)
    assert step.computation == pytest.approx(3.0)
    assert step.communication == pytest.approx(1.5, rel=0.001)
    assert (step.exposed, step.total) == (0, pytest.approx(3.0))


def test_rest_of_a_collective_is_exposed() -> None:
    step = step_time(WORK, [sent("forward", 1, 1.5)], PACE)
    assert step.exposed == pytest.approx(0.5, rel=0.001)
    assert step.total == pytest.approx(3.5, rel=0.001)


@pytest.mark.parametrize("part", ["backward", "loss", "update"])
def test_what_has_no_window_is_exposed(part: Part) -> None:
    assert step_time(WORK, [sent(part, 0, 0.5)], PACE).exposed == pytest.approx(0.5, rel=0.001)


def test_windows_share_the_same_computation() -> None:
    """Half of the backward is one second: 0.8 s fit it, and 1.8 s more do not fit the two with them."""
    both = [sent("backward", 0.5, 0.8), sent("backward", 1, 1.8)]
    assert step_time(WORK, both, PACE).exposed == pytest.approx(0.6, rel=0.002)
    narrow = [sent("backward", 0.5, 1.4), sent("backward", 1, 0.1)]
    assert step_time(WORK, narrow, PACE).exposed == pytest.approx(0.4, rel=0.002)


def test_bound_is_what_takes_longest() -> None:
    slow = [sent("backward", 1, 5.0)]
    assert step_time(WORK, [], PACE).bound == "computation"
    assert step_time(WORK, slow, PACE).bound == "communication"
    starved = step_time(WORK, slow, PACE, input_seconds=9.0)
    assert (starved.bound, starved.total) == ("input", 9.0)


def test_equal_collectives_take_as_long_as_one_by_one() -> None:
    several = Collective("all_gather", 10**9, 2, 1, 7, "loss", 0)
    assert step_time(WORK, [several], PACE).exposed == pytest.approx(7 * seconds_of(several, NETWORK))


def test_slowest_of_many_is_slower_by_few_per_cent() -> None:
    """Of 8 normal values the largest is expected at 1.42 deviations (Harter, 1961), of 512 at 3.04."""
    assert slowest(1) == 1.0
    assert slowest(8) == pytest.approx(1 + 1.424 * 0.08 / 5.4, abs=2e-4)
    assert slowest(512) == pytest.approx(1 + 3.04 * 0.08 / 5.4, abs=3e-4)
    assert step_time(WORK, [], Pace(1e12, 1e12, NODE, NETWORK)).computation == pytest.approx(3.0)
