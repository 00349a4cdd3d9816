"""The speed of a run, and the time that the rest of its budget takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flipscale.orchestration.status.history import SegmentStatus, effective_speed, unix_time
from flipscale.runs.snapshot import RunFiles

_RECENT_LINES = 20


@dataclass(frozen=True)
class SpeedStatus:
    """The speed of a run, and its time left."""

    images_per_second: float | None
    """The speed of all processes together, from the last log lines of this phase."""
    data_wait_fraction: float | None
    """The share of that time in which training waited for data."""
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

    recent = waited = None
    if lines:
        # Lines are equally far apart in samples, so their speeds average harmonically.
        times = [1 / line.finite("images_per_second") for line in lines]
        recent = len(times) / sum(times)
        waits = [time * line.finite("data_wait_fraction") for time, line in zip(times, lines, strict=True)]
        waited = sum(waits) / sum(times)

    effective = effective_speed(segments, waiting)
    left = files.total - samples
    basis, speed = ("history", effective) if effective else ("speed", recent)
    known = speed is not None and left > 0
    eta = 0.0 if left <= 0 else None
    if known and speed:
        eta = round(left / speed, 1)

    return SpeedStatus(_rounded(recent), _rounded(waited), _rounded(effective), eta, basis if known else None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
