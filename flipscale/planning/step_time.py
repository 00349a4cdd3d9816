"""The time of a step: its computation, its communication as far as nothing hides it, and its input.

    step = max(computation + loss + exposed communication, input)

*Computation* is the FLOPs of both towers over the share of the peak that they reach (the MFU of one node),
times the delay of the slowest GPU of many. *Exposed* is what of the communication cannot run during the
computation of its part of the step: all of what `traffic` gives no window, and what exceeds the window of the
rest. The bound is the largest of computation with loss, communication (hidden or not), and input.

Left out: that collectives take multiprocessors from the kernels, that blocks differ in how well
they hide theirs, the host, and the exchange of a step's facts over gloo, which runs during the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from flipscale.planning.network import Network, collective_seconds
from flipscale.planning.traffic import Collective

Bound = Literal["computation", "communication", "input"]

SPREAD = 0.08 / 5.4
"""The standard deviation of the speed of equal GPUs.

Sinha et al., Not All GPUs Are Created Equal (SC 2022, arXiv 2208.11035), find 8 % between the GPUs of a
cluster, read as the range of a box plot's whiskers, which are 5.4 standard deviations apart.
"""
NODE = 8
"""GPUs of the node on which an MFU is measured."""
LOSS_SHARE = 0.5
"""The share of the fp32 peak that the products of the loss reach, with the passes over their tiles."""


@dataclass(frozen=True)
class Work:
    """What one GPU computes in a step, in FLOPs."""

    forward: float
    """All forwards of both towers, without the recomputed ones."""
    backward: float
    """The backward, with the recomputed part of the forward."""
    loss: float
    """The products of the loss, which are fp32."""


@dataclass(frozen=True)
class Pace:
    """How fast the GPUs of a job compute, and what connects them."""

    flops: float
    """FLOP/s that one GPU reaches in the towers: its peak times the MFU."""
    fp32_flops: float
    """FLOP/s of the fp32 peak of a GPU."""
    gpus: int
    network: Network


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what they are spent on."""

    computation: float
    """Both towers, forward and backward, on the slowest GPU."""
    loss: float
    """The products of the loss."""
    communication: float
    """All collectives, one after the other."""
    exposed: float
    """The part of `communication` that nothing hides."""
    input: float | None = None
    """Reading the samples of the step, at the same time as all else; None if the cores are not known."""

    @property
    def total(self) -> float:
        """Seconds from one step to the next."""
        return max(self.computation + self.loss + self.exposed, self.input or 0.0)

    @property
    def bound(self) -> Bound:
        """What a faster step needs first."""
        times: dict[Bound, float] = {
            "computation": self.computation + self.loss,
            "communication": self.communication,
            "input": self.input or 0.0,
        }
        return max(times, key=lambda name: times[name])


def step_time(
    work: Work, collectives: Iterable[Collective], pace: Pace, input_seconds: float | None = None
) -> StepTime:
    """Return the time of a step.

    Args:
        work: What one GPU computes.
        collectives: What is sent.
        pace: The speed of the GPUs and their network.
        input_seconds: Time in which the cores of a GPU read its samples of the step, if known.
    """
    forward, backward = (
        flops / pace.flops * slowest(pace.gpus) / slowest(NODE) for flops in (work.forward, work.backward)
    )
    windows = {"forward": forward, "backward": backward, "loss": 0.0, "update": 0.0}

    sent = [(one, one.count * seconds_of(one, pace.network)) for one in collectives]
    exposed = sum(
        _exposed([(one.window, seconds) for one, seconds in sent if one.part == part], computation)
        for part, computation in windows.items()
    )
    return StepTime(
        computation=forward + backward,
        loss=work.loss / (pace.fp32_flops * LOSS_SHARE),
        communication=sum(seconds for _, seconds in sent),
        exposed=exposed,
        input=input_seconds,
    )


def seconds_of(one: Collective, network: Network) -> float:
    """Return the time of a single one of these collectives."""
    return collective_seconds(one.kind, one.size, one.ranks, one.ranks_per_node, network)


def slowest(gpus: int) -> float:
    """Return the expected time of the slowest of many GPUs, relative to the mean of all.

    All wait for it in every step. The speeds are normally distributed; the expected largest of n values is
    Blom's approximation (Statistical Estimates and Transformed Beta-Variables, 1958).
    """
    return 1 + SPREAD * NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25))


def _exposed(sent: list[tuple[float, float]], computation: float) -> float:
    """Return the seconds of a part's collectives that exceed its computation.

    Args:
        sent: For each of them, the share of the computation during which it can run, and its time.
        computation: Seconds of the part's computation.
    """
    # Windows end together, so that the smaller is a part of the larger: what may use the smaller must fit
    # into it, and everything must fit into the larger.
    unhidden = sum(seconds for window, seconds in sent if not window)
    beyond = 0.0
    for largest in sorted({window for window, _ in sent if window}):
        inside = sum(seconds for window, seconds in sent if 0 < window <= largest)
        beyond = max(beyond, inside - largest * computation)
    return unhidden + beyond
