"""submissions.jsonl: one line per job that was submitted for a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from flipscale import jsonl
from flipscale.config import Site
from flipscale.runs.directory import RunDirectory
from flipscale.runs.records import number, text
from flipscale.slurm import JOB_ID, is_job_id

ClusterKind = Literal["slurm", "local"]
JobId = Annotated[str, Field(pattern=f"^{JOB_ID}$")]
_Line = TypeVar("_Line")


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
    job_id: JobId
    nodes: int
    processes_per_node: int
    partition: str
    time_limit: int
    accounting: bool
    dependency: JobId | None
    site: Site


@dataclass(frozen=True)
class SubmittedJob:
    """The job of a submission.

    Attributes:
        cluster: `slurm`, or `local` for submitit on this machine.
        job_id: As in `Submission`.
        dependency: As in `Submission`.
    """

    cluster: ClusterKind
    job_id: JobId
    dependency: JobId | None = None


@dataclass(frozen=True)
class RecordedJob:
    """The part of a submission that an observer needs, read from a line of any version.

    Attributes:
        time: Seconds since 1970; 0 if the line has no time.
        cluster: `slurm`, `local`, or empty.
        job_id: As in `Submission`; empty if the line has none, or anything else in its place.
        accounting: Whether `sacct` answers.
    """

    time: float
    cluster: str
    job_id: str
    accounting: bool


def append_submission(run: RunDirectory, submission: Submission) -> None:
    """Append a line; it is on disk when this returns."""
    line = asdict(submission) | {"site": submission.site.model_dump(mode="json", exclude_none=True)}
    jsonl.append(run.submissions, [line], durable=True)


def read_submissions(run: RunDirectory) -> list[Submission]:
    """Return all submissions of a run, oldest first; an empty list if it was never submitted.

    Raises:
        UserError: If a line is damaged.
    """
    return _read(run, Submission)


def read_submitted_jobs(run: RunDirectory) -> list[SubmittedJob]:
    """Return the jobs of all submissions, oldest first; the sites of earlier versions need not be known.

    Raises:
        UserError: If a line is damaged.
    """
    return _read(run, SubmittedJob)


def tail_submissions(run: RunDirectory, limit: int) -> list[RecordedJob]:
    """Return the submissions in the last `limit` bytes of the file, oldest first; never raises."""
    return [
        RecordedJob(
            time=number(record, "time"),
            cluster=text(record, "cluster"),
            job_id=job_id if is_job_id(job_id := text(record, "job_id")) else "",
            accounting=bool(record.get("accounting")),
        )
        for record in jsonl.tail(run.submissions, limit)
    ]


def _read(run: RunDirectory, kind: type[_Line]) -> list[_Line]:
    return jsonl.read_as(kind, run.submissions, "restore the line, or remove it if its job has ended")
