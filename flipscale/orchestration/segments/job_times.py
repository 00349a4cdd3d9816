"""The times of a run's jobs by Slurm, for the ledger: no process sees when a job gets and loses its nodes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from flipscale import slurm
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger
from flipscale.runs.past_starts import PastStart, SlurmTimes
from flipscale.runs.submissions import read_submissions
from flipscale.slurm import SlurmError

_JOBS = 20  # the newest ones of the run; older ones were asked about at the starts since
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobStart:
    """One start of a job that has ended; a requeued job has several.

    Attributes:
        job_id: Id of the job.
        started: When Slurm gave it its nodes, in seconds since 1970.
        ended: When Slurm took them back.
        state: How it ended: COMPLETED, FAILED, REQUEUED, ...
    """

    job_id: str
    started: float
    ended: float
    state: str


def slurm_times(run: RunDirectory, job_id: str, *, accounting: bool) -> SlurmTimes:
    """Return what Slurm says about this start and those before it; a Slurm that does not answer is logged.

    Args:
        run: The run.
        job_id: The job of this start.
        accounting: Whether `sacct` answers.
    """
    try:
        record = slurm.query_job(job_id) or {}
        seconds = slurm.parse_time_limit(record.get("RunTime", ""))
        return SlurmTimes(_past_starts(run, accounting), None if seconds is None else float(seconds))
    except (SlurmError, UserError) as error:
        _log.warning("Slurm does not say when the jobs of the run began and ended: %s", error)
        return SlurmTimes()


def _past_starts(run: RunDirectory, accounting: bool) -> tuple[PastStart, ...]:
    submissions = {job.job_id: job for job in read_submissions(run) if job.cluster == "slurm"}
    booked = [line.job_id for line in read_ledger(run.path) if line.job_id in submissions]
    job_ids = list(dict.fromkeys([*reversed(submissions), *reversed(booked)]))[:_JOBS]

    return tuple(
        PastStart(
            start.job_id,
            start.started,
            start.ended,
            start.state,
            submissions[start.job_id].nodes * submissions[start.job_id].processes_per_node,
        )
        for start in query_starts(job_ids, accounting=accounting)
    )


def query_starts(job_ids: Sequence[str], *, accounting: bool) -> list[JobStart]:
    """Return the starts of jobs that have ended, oldest first.

    Args:
        job_ids: `123`, or `123_4` for an element of an array.
        accounting: Whether to ask `sacct`. The controller itself remembers only the last start of a job, and
            only for some minutes.
    """
    job_ids = [job_id for job_id in job_ids if slurm.is_job_id(job_id)]
    if not accounting:
        records = [slurm.query_job(job_id) for job_id in job_ids]
        listed = [
            (job_id, record.get("StartTime", ""), record.get("EndTime", ""), record.get("JobState", ""))
            for job_id, record in zip(job_ids, records, strict=True)
            if record is not None
        ]
    else:
        fields = ("-o", "JobID,Start,End,State")
        out = (
            slurm.run_slurm("sacct", "-n", "-P", "-X", "-D", "-j", ",".join(job_ids), *fields)
            if job_ids
            else ""
        )
        listed = [tuple(line.split("|")) for line in out.splitlines() if line.count("|") == 3]

    starts: list[JobStart] = []
    for job_id, start, end, state in listed:
        started = slurm.parse_time(start)
        ended = slurm.parse_time(end)
        word = (state.split() or ["UNKNOWN"])[0]
        # The accounting has an end only if there was one. The controller gives the limit of a job that runs.
        over = accounting or word not in slurm.LIVE_STATES
        if job_id in job_ids and started is not None and ended is not None and over:
            starts.append(JobStart(job_id, started, ended, word))
    return sorted(starts, key=lambda start: start.started)
