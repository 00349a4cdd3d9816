"""Moments relative to now, and a run whose hours are known, for the tests of `flipscale status`."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from support.run_in_files import RunInFiles

from flipscale.orchestration.status.liveness import SlurmView
from flipscale.orchestration.status.run_status import RunStatus, read_status


def ago(seconds: float) -> float:
    """Return the time so many seconds before now, in seconds since 1970."""
    return time.time() - seconds


def utc(seconds: float) -> str:
    """Return seconds since 1970 as an ISO time."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def status_of(run: RunInFiles) -> RunStatus:
    """Return what `flipscale status` knows of the run."""
    return read_status(run.path, SlurmView())


def two_hours(run: RunInFiles) -> RunInFiles:
    """100 s in the queue, 1000 s that give 400 samples, 300 s in the queue, 600 s that give 200 more."""
    run.submitted("7", time=ago(5000))
    run.segment(
        reason="preempted", started=utc(ago(4900)), ended=utc(ago(3900)), samples_from=0, samples_to=400,
        seconds=1000, gpu_seconds=2000, startup_seconds=50, lost_samples=16, lost_seconds=40, job_id="7",
    )  # fmt: skip
    run.segment(
        reason="code", detail="ValueError: a tar of tars", started=utc(ago(3600)), ended=utc(ago(3000)),
        samples_from=400, samples_to=600, seconds=600, gpu_seconds=1200, startup_seconds=30, job_id="7",
    )  # fmt: skip
    return run.checkpoint(400).checkpoint(600)
