"""The record of a run's submissions: one line of RUN/submissions.jsonl for each job that was submitted."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.local_executor import controller_lives
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger
from flipscale.runs.submissions import ClusterKind, Submission, append_submission, read_submissions
from flipscale.slurm import SlurmError, query_queue, read_configuration

_BLAMED_TWICE = 2


@dataclass(frozen=True)
class SubmittedJob:
    """The id of a job that was just submitted, and the job that it waits for.

    Attributes:
        cluster: `slurm`, or `local` for submitit on this machine.
        job_id: As in `Submission`.
        dependency: As in `Submission`.
    """

    cluster: ClusterKind
    job_id: str
    dependency: str | None = None


def record_submission(
    run: RunDirectory, submitted: SubmittedJob, allocation: Allocation, site: Site
) -> Submission:
    """Append a line to submissions.jsonl and return it; the line is on disk when this returns."""
    submission = Submission(
        time=time.time(),
        cluster=submitted.cluster,
        job_id=submitted.job_id,
        nodes=allocation.nodes,
        processes_per_node=allocation.processes_per_node,
        partition=site.partition or "",
        time_limit=allocation.time_limit,
        accounting=submitted.cluster == "slurm" and _has_accounting(),
        dependency=submitted.dependency,
        site=site,
    )

    append_submission(run, submission)
    return submission


def living_submissions(run: RunDirectory) -> list[Submission]:
    """Return the submissions whose jobs are queued or running; asks Slurm at most once.

    Raises:
        UserError: If Slurm does not answer, because two jobs of one run would compete for it.
    """
    submissions = read_submissions(run)
    in_slurm = [submission.job_id for submission in submissions if submission.cluster == "slurm"]
    try:
        states = query_queue(in_slurm)
    except SlurmError as error:
        raise UserError(f"whether a job of {run.path} still runs is not known: {error}; try again") from None

    return [
        submission
        for submission in submissions
        if (submission.cluster == "local" and controller_lives(submission.job_id, logs(run)))
        or (submission.job_id in states and states[submission.job_id].live)
    ]


def suspected_nodes(run: RunDirectory) -> list[str]:
    """Return the nodes that at least two segments of the run blame for their end."""
    blamed = Counter(node for segment in read_ledger(run.path) for node in set(segment.suspects))
    return sorted(node for node, times in blamed.items() if times >= _BLAMED_TWICE)


def logs(run: RunDirectory) -> Path:
    """Return the directory of the run's logs, which is also submitit's folder."""
    return run.path / "logs"


def _has_accounting() -> bool:
    try:
        storage = read_configuration().get("AccountingStorageType", "")
    except (SlurmError, UserError):
        # The job is submitted already; its record matters more than the place of its accounting.
        return False
    return storage.removeprefix("accounting_storage/") not in ("", "none", "(null)")
