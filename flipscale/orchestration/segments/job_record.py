"""Slurm's record of the job of this start: does it end, and does it start again?"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from flipscale import slurm
from flipscale.config import Site
from flipscale.distributed.placement import Placement
from flipscale.errors import Reason, UserError
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import slurm_verdict
from flipscale.slurm import SlurmError

# Seconds before the limit in which it causes a stop: Slurm warns up to a minute early, on a coarse clock.
_NEAR_THE_LIMIT = 120.0


@dataclass(frozen=True)
class JobRecord:
    """What Slurm says about a job.

    Attributes:
        fields: The fields of `scontrol show job`; without scontrol only the state. Empty for a job that Slurm
            does not know.
        restarts: How often Slurm had requeued the job before this start.
        stop_before: Seconds before the time limit at which a start stops.
    """

    fields: Mapping[str, str]
    restarts: int
    stop_before: int

    @property
    def seconds_left(self) -> float | None:
        """How long the time limit lets the job run, by Slurm's own clock; None if that is unknown."""
        limit = slurm.parse_time_limit(self.fields.get("TimeLimit", ""))
        run = slurm.parse_time_limit(self.fields.get("RunTime", ""))
        return None if limit is None or run is None else float(limit - run)

    @property
    def near_its_limit(self) -> bool:
        """Whether the time limit explains a stop now."""
        left = self.seconds_left
        return left is not None and left < self.stop_before + _NEAR_THE_LIMIT

    @property
    def requeued(self) -> bool:
        """Whether Slurm starts this job again already: Slurm counts a restart once it is decided."""
        return int(self.fields.get("Restarts", "0")) > self.restarts

    @property
    def cancelled(self) -> bool:
        """Whether the job was ended from outside."""
        return self.fields.get("JobState") in ("COMPLETING", "CANCELLED") and not self.requeued


def query_record(place: Placement, site: Site) -> JobRecord:
    """Return Slurm's record of the job.

    Args:
        place: The placement of a process of the job.
        site: The cluster.

    Raises:
        SlurmError: If Slurm does not answer.
        UserError: If Slurm's commands are not installed.
    """
    return JobRecord(slurm.query_job(place.job_id) or {}, place.restarts, site.stop_before)


def reason_of_signal(run: RunDirectory, place: Placement, site: Site, started: float) -> Reason:
    """Return the ledger's word for a stop that a signal requested: only Slurm knows why.

    Args:
        run: The run directory.
        place: The placement of a process of the job.
        site: The cluster.
        started: When this start began, in seconds since 1970.
    """
    try:
        record = query_record(place, site)
    except (SlurmError, UserError):
        return "preempted"

    if record.near_its_limit:
        return "timeout"
    if record.cancelled:
        return "cancelled"
    if record.requeued:
        log = run.path / "logs" / f"{place.job_id}_0_log.err"
        return slurm_verdict(log, datetime.fromtimestamp(started)) or "preempted"

    return "preempted"


def query_state(place: Placement, site: Site) -> JobRecord:
    """Return Slurm's record of the job, as `query_record`; only its state if the node has no scontrol."""
    if shutil.which("scontrol") is not None:
        return query_record(place, site)

    state = slurm.query_queue([place.job_id]).get(place.job_id)
    fields = {"JobState": state.state} if state is not None else {}
    return JobRecord(fields, place.restarts, site.stop_before)
