"""The times of a run's jobs by Slurm, for the ledger: no process sees when a job gets and loses its nodes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from flipscale import slurm
from flipscale.distributed.placement import Placement
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger, read_open_segment, timestamp
from flipscale.runs.noted_starts import read_noted_starts
from flipscale.runs.past_starts import JobStart, PastStart, SlurmTimes
from flipscale.runs.submissions import Submission, read_submissions
from flipscale.slurm import SlurmError

_JOBS = 20  # the newest ones of the run; older ones were asked about at the starts since
_CLOCKS = 5.0  # seconds by which the clocks of Slurm's controller and of a node may differ
_log = logging.getLogger(__name__)


def slurm_times(run: RunDirectory, place: Placement, *, accounting: bool) -> SlurmTimes:
    """Return what Slurm and batch scripts say about this start and those before it.

    A Slurm that does not answer is logged; the notes of the batch scripts then count.

    Args:
        run: The run.
        place: The placement of a process of this start.
        accounting: Whether `sacct` answers.
    """
    starts: list[JobStart] = []
    seconds = None
    try:
        record = slurm.query_job(place.job_id) or {}
        seconds = slurm.parse_time_limit(record.get("RunTime", ""))
        starts = query_starts(_newest_jobs(run), accounting=accounting)
    except (SlurmError, UserError) as error:
        _log.warning("Slurm does not say when the jobs of the run began and ended: %s", error)
        accounting = False

    if not accounting:
        starts = _with_notes(run, starts, place.attempt)
    return SlurmTimes(_past_starts(run, starts), None if seconds is None else float(seconds))


def _newest_jobs(run: RunDirectory) -> list[str]:
    submissions = _submissions(run)
    booked = [line.job_id for line in read_ledger(run.path) if line.job_id in submissions]
    return list(dict.fromkeys([*reversed(submissions), *reversed(booked)]))[:_JOBS]


def _submissions(run: RunDirectory) -> dict[str, Submission]:
    return {job.job_id: job for job in read_submissions(run) if job.cluster == "slurm"}


def _past_starts(run: RunDirectory, starts: Sequence[JobStart]) -> tuple[PastStart, ...]:
    jobs = _submissions(run)
    return tuple(
        PastStart(
            start.job_id,
            start.started,
            start.ended,
            start.state,
            jobs[start.job_id].nodes * jobs[start.job_id].processes_per_node,
        )
        for start in starts
        if start.job_id in jobs
    )


def _with_notes(run: RunDirectory, known: Sequence[JobStart], attempt: str) -> list[JobStart]:
    """Return the starts that Slurm still knows, and those of which only the batch scripts made notes.

    Args:
        run: The run.
        known: Starts by Slurm: without accounting, at most the last start of each job.
        attempt: The name of this start.
    """
    under_way = read_open_segment(run.path)
    lines = [*read_ledger(run.path), *([under_way] if under_way is not None else [])]
    # The processes know better when the job began: its prolog comes before its script.
    begun = {line.attempt: timestamp(line.started) for line in lines if line.attempt and line.started}
    last_known = {start.job_id: start.started for start in known}

    starts = list(known)
    for note in read_noted_starts(run):
        job_id, _, restarts = note.attempt.rpartition(".")
        if note.attempt == attempt or not restarts.isdigit() or not slurm.is_job_id(job_id):
            continue
        if note.began >= last_known.get(job_id, math.inf) - _CLOCKS:
            continue

        started = min(note.began, begun.get(note.attempt, note.began))
        starts.append(JobStart(job_id, started, note.left or note.began, ""))
    return sorted(starts, key=lambda start: start.started)


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
