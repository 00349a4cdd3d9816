"""submissions.jsonl: one line per job that was submitted for a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from flipscale import jsonl
from flipscale.config import Site
from flipscale.runs.directory import RunDirectory
from flipscale.runs.records import number, text

ClusterKind = Literal["slurm", "local"]


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
class RecordedJob:
    """The part of a submission that an observer needs, read from a line of any version.

    Attributes:
        time: Seconds since 1970; 0 if the line has no time.
        cluster: `slurm`, `local`, or empty.
        job_id: As in `Submission`; empty if the line has none.
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
    """Return all submissions of a run, oldest first; an empty list if it was never submitted."""
    records = jsonl.read(run.submissions)
    for record in records:
        record["site"] = Site.model_validate(record["site"])
    return [Submission(**record) for record in records]


def tail_submissions(run: RunDirectory, limit: int) -> list[RecordedJob]:
    """Return the submissions in the last `limit` bytes of the file, oldest first; never raises."""
    return [
        RecordedJob(
            time=number(record, "time"),
            cluster=text(record, "cluster"),
            job_id=text(record, "job_id"),
            accounting=bool(record.get("accounting")),
        )
        for record in jsonl.tail(run.submissions, limit)
    ]
