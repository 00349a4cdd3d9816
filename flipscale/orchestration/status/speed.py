"""The speed of a run, and the time that the rest of its budget takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flipscale.orchestration.status.history import SegmentStatus, effective_speed, unix_time
from flipscale.runs.metrics import MetricsLine
from flipscale.runs.snapshot import RunFiles

_RECENT_LINES = 20


@dataclass(frozen=True)
class SpeedStatus:
    """The speed of a run, and its time left."""

    images_per_second: float | None
    """The speed of all processes together, from the last log lines of this phase."""
    data_wait_fraction: float | None
    """The share of that time in which training waited for data."""
    tflops: float | None
    """Model operations of one process in that time, TFLOP/s; None for a run that does not record them."""
    mfu: float | None
    """The share of its GPU's peak that they are; None on a CPU, and if the GPU is not known."""
    effective_images_per_second: float | None
    """The speed over all wall time, with queues, start-ups and replays; None before a segment has ended."""
    eta_seconds: float | None
    eta_from: str | None
    """history: from the effective speed; speed: only from the recent speed; None if neither is known."""


def speed_of(files: RunFiles, segments: Sequence[SegmentStatus], samples: int, waiting: float) -> SpeedStatus:
    """Return the speed of a run.

    Args:
        files: The files of the run.
        segments: All segments, oldest first.
        samples: Samples trained so far.
        waiting: How long the next segment has been in the queue, in seconds.
    """
    lines = files.metrics[-_RECENT_LINES:]
    lines = [line for line in lines if line.phase == lines[-1].phase]
    began = unix_time(segments[-1].started) if segments else None
    lines = [line for line in lines if began and line.finite("time") >= began] or lines
    lines = [line for line in lines if line.finite("images_per_second") > 0]

    # Lines are equally far apart in samples, so their speeds average harmonically.
    times = [1 / line.finite("images_per_second") for line in lines]
    recent = len(times) / sum(times) if times else None
    waited, tflops, mfu = (_mean(lines, times, name) for name in ("data_wait_fraction", "tflops", "mfu"))

    effective = effective_speed(segments, waiting)
    left = files.total - samples
    basis, speed = ("history", effective) if effective else ("speed", recent)
    known = speed is not None and left > 0
    eta = 0.0 if left <= 0 else None
    if known and speed:
        eta = round(left / speed, 1)

    return SpeedStatus(
        images_per_second=_rounded(recent),
        data_wait_fraction=_rounded(waited),
        tflops=_rounded(tflops),
        mfu=_rounded(mfu),
        effective_images_per_second=_rounded(effective),
        eta_seconds=eta,
        eta_from=basis if known else None,
    )


def _mean(lines: Sequence[MetricsLine], times: Sequence[float], name: str) -> float | None:
    """Return the mean of a column over the time of the lines; None if a line lacks it."""
    values = [line.column(name) for line in lines]
    if not values or not all(map(math.isfinite, values)):
        return None
    return sum(time * value for time, value in zip(times, values, strict=True)) / sum(times)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
