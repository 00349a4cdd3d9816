"""The record of a run's submissions: one line of RUN/submissions.jsonl for each job that was submitted."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flipscale import jsonl
from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.local_executor import controller_lives
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger
from flipscale.slurm import SlurmError, query_queue, read_configuration

ClusterKind = Literal["slurm", "local"]

_RECORDS = "submissions.jsonl"
_BLAMED_TWICE = 2


@dataclass(frozen=True)
class Submission:
    """One line of submissions.jsonl.

    Attributes:
        time: Seconds since 1970.
        cluster: `slurm`, or `local` for submitit on this machine.
        job_id: Slurm's job id, `123_4` for an element of an array; for `local` the pid of submitit's
            controller.
        nodes: Number of nodes.
        processes_per_node: Training processes on each node.
        partition: Slurm's partition; empty for the cluster's default.
        time_limit: Seconds of one segment.
        accounting: Whether `sacct` answers.
        dependency: Id of the job that this one waits for.
        site: The site file at the time of the submission.
    """

    time: float
    cluster: ClusterKind
    job_id: str
    nodes: int
    processes_per_node: int
    partition: str
    time_limit: int
    accounting: bool
    dependency: str | None
    site: Site


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

    line = asdict(submission) | {"site": site.model_dump(mode="json", exclude_none=True)}
    jsonl.append(run.path / _RECORDS, [line], durable=True)
    return submission


def read_submissions(run: RunDirectory) -> list[Submission]:
    """Return all submissions of a run, oldest first; an empty list if it was never submitted."""
    records = jsonl.read(run.path / _RECORDS)
    for record in records:
        record["site"] = Site.model_validate(record["site"])
    return [Submission(**record) for record in records]


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
    blamed = Counter(node for segment in read_ledger(run.path) for node in set(segment.get("suspects", ())))
    return sorted(node for node, times in blamed.items() if times >= _BLAMED_TWICE)


def logs(run: RunDirectory) -> Path:
    """Return the directory of the run's logs, which is also submitit's folder."""
    return run.path / "logs"


def _has_accounting() -> bool:
    try:
        storage = read_configuration().get("AccountingStorageType", "")
    except SlurmError:
        # The job is submitted already; its record matters more than the place of its accounting.
        return False
    return storage.removeprefix("accounting_storage/") not in ("", "none", "(null)")
