"""Hand a run to Slurm, or to submitit on this machine; submissions.jsonl remembers every time."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from submitit.core.utils import FailedJobError, FailedSubmissionError

from flipscale import jsonl
from flipscale.config import Job, Site
from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.orchestration.cluster.allocation import Allocation, allocation
from flipscale.orchestration.cluster.batch_script import Batch, batch
from flipscale.orchestration.cluster.launcher import Launch
from flipscale.orchestration.cluster.local_executor import DetachedExecutor, controller_lives
from flipscale.runs.directory import RunDirectory, committed_samples, prepare
from flipscale.runs.ledger import read_ledger
from flipscale.slurm import SlurmError, query_queue, read_configuration

ClusterKind = Literal["slurm", "local"]

TOKEN = "token"
_RECORDS = "submissions.jsonl"
_BLAMED_TWICE = 2


@dataclass(frozen=True)
class Submission:
    """One line of submissions.jsonl."""

    time: float  # seconds since 1970
    cluster: ClusterKind
    job_id: str
    """Slurm's, `123_4` for an element of an array; on this machine the pid of submitit's controller."""
    nodes: int
    processes_per_node: int
    partition: str  # empty: the cluster's default
    time_limit: int  # seconds
    accounting: bool  # whether `sacct` answers
    dependency: str | None  # the job it waits for
    site: Site


def submit_run(
    run: RunDirectory, job: Job, site: Site, *, cluster: ClusterKind, dependency: str | None = None
) -> Submission:
    """Submit `job`, whose run directory `run` is made or goes on; return what was recorded.

    It prints nothing and may be called inside a job, there within submitit.helpers.clean_env().

    Args:
        dependency: a job id of this run that may still live; the new job starts when that one has ended.

    Raises UserError where a job of the run is queued or running (other than `dependency`), where another
    submission of it is under way, and where Slurm refuses the job.
    """
    asked = allocation(job, site)
    with _submitting(run, job, dependency):
        if cluster == "slurm":
            executor = script_of([(run, job)], site, dependency=dependency)
            (job_id,) = _submitted(executor, [run], site)
        else:
            executor = DetachedExecutor(logs(run), asked, site)
            job_id = executor.submit(Launch(str(run.path), site.launcher)).job_id
        return _record(run, asked, site, cluster, job_id, dependency)


def submit_array(
    runs: Sequence[tuple[RunDirectory, Job]], site: Site, *, at_most: int | None = None
) -> list[Submission]:
    """Submit several jobs to Slurm as one array; return their submissions in order.

    Args:
        at_most: of them that run at once.

    Raises UserError as `submit_run` does, and where the jobs ask for different resources.
    """
    if len(runs) == 1:
        return [submit_run(*runs[0], site, cluster="slurm")]
    executor = script_of(runs, site, at_most=at_most)
    folder = executor.folder
    with ExitStack() as stack:
        for run, job in runs:
            stack.enter_context(_submitting(run, job, None))
        folder.mkdir()
        for number, (run, _) in enumerate(runs):
            (folder / str(number)).symlink_to(logs(run))
        try:
            job_ids = _submitted(executor, [run for run, _ in runs], site)
        except UserError:
            shutil.rmtree(folder)
            raise
        return [
            _record(run, allocation(job, site), site, "slurm", job_id, None)
            for (run, job), job_id in zip(runs, job_ids, strict=True)
        ]


def script_of(
    runs: Sequence[tuple[RunDirectory, Job]],
    site: Site,
    *,
    dependency: str | None = None,
    at_most: int | None = None,
) -> Batch:
    """The executor that submits these runs, and that shows the script beforehand; writes nothing.

    Raises UserError where several jobs ask for different resources, or share a run directory.
    """
    paths = Counter(run.path for run, _ in runs)
    for path, times in paths.items():
        if times > 1:
            raise UserError(f"{times} of these jobs write to {path}; give each its own name or output")
        _check_path(path)
    shapes = {allocation(job, site): job.name for _, job in runs}
    if len(shapes) > 1:
        (one, first), (other, second), *_ = shapes.items()
        raise UserError(
            f"the jobs of an array ask for the same resources, but {first} and {second} differ "
            f"({_difference(one, other)}); submit them one by one, or make them equal"
        )
    folder, name = logs(runs[0][0]), runs[0][1].name
    if len(runs) > 1:
        folder, name = folder / f"array_{secrets.token_hex(4)}", f"{name}_and_{len(runs) - 1}_more"
    suspects = {node for run, _ in runs for node in suspected_nodes(run)}
    return batch(
        [run for run, _ in runs],
        folder,
        name,
        next(iter(shapes)),
        site,
        exclude=sorted(suspects - set(site.exclude)),
        after=dependency,
        at_most=at_most,
    )


def require_slurm() -> None:
    """Raise UserError where this machine cannot submit to Slurm."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on PATH; submit where Slurm's commands are, or train on this machine alone "
            "with --cluster local"
        )


def logs(run: RunDirectory) -> Path:
    return run.path / "logs"


def read_submissions(run: RunDirectory) -> list[Submission]:
    """All submissions of a run, oldest first; none where it was never submitted."""
    records = jsonl.read(run.path / _RECORDS)
    for record in records:
        record["site"] = Site.model_validate(record["site"])
    return [Submission(**record) for record in records]


def living(run: RunDirectory) -> list[Submission]:
    """The submissions whose jobs are queued or running, with one question to Slurm at most.

    Raises UserError where Slurm does not answer: two jobs of one run would fight over it.
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
    """Nodes that at least two segments of the run blame for their end."""
    blamed = Counter(node for segment in read_ledger(run.path) for node in set(segment.get("suspects", ())))
    return sorted(node for node, times in blamed.items() if times >= _BLAMED_TWICE)


@contextmanager
def _submitting(run: RunDirectory, job: Job, dependency: str | None) -> Iterator[None]:
    """Prepare the run, and hold it against other submissions."""
    if not run.job.exists():
        prepare(run, job, 0)  # makes the directory, unless it holds something else
    with _held(run):
        for other in living(run):
            if other.job_id != dependency:
                raise UserError(
                    f"job {other.job_id} of {run.path} is queued or running already; look with `flipscale "
                    f"status {quote(str(run.path))}`, or end it first with `flipscale cancel "
                    f"{quote(str(run.path))}`"
                )
        prepare(run, job, committed_samples(run))
        logs(run).mkdir(exist_ok=True)
        if not (run.path / TOKEN).exists():
            write_durably(run.path / TOKEN, "A node that does not see this file shares no run with us.\n")
        if dependency is None:
            run.stop_file.unlink(missing_ok=True)  # whoever submits a run wants it to go on
        yield


@contextmanager
def _held(run: RunDirectory) -> Iterator[None]:
    descriptor = os.open(run.path / "submit.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another submission of {run.path} is under way; wait for its end") from None
        yield
    finally:
        os.close(descriptor)


def _submitted(executor: Batch, runs: Sequence[RunDirectory], site: Site) -> list[str]:
    require_slurm()
    try:
        jobs = executor.submit_array([Launch(str(run.path), site.launcher) for run in runs])
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"Slurm refused the job: {_told(str(error))}") from None
    finally:
        for left in executor.folder.glob(".submission_file_*"):
            left.unlink()
        for left in executor.folder.glob(f"{'[0-9a-f]' * 32}.pkl"):
            left.unlink()
    return [job.job_id for job in jobs]


def _record(
    run: RunDirectory, asked: Allocation, site: Site, cluster: ClusterKind, job_id: str, after: str | None
) -> Submission:
    submission = Submission(
        time=time.time(),
        cluster=cluster,
        job_id=job_id,
        nodes=asked.nodes,
        processes_per_node=asked.processes_per_node,
        partition=site.partition or "",
        time_limit=asked.time_limit,
        accounting=cluster == "slurm" and _has_accounting(),
        dependency=after,
        site=site,
    )
    line = asdict(submission) | {"site": site.model_dump(mode="json", exclude_none=True)}
    jsonl.append(run.path / _RECORDS, [line], durable=True)
    return submission


def _has_accounting() -> bool:
    try:
        kept_by = read_configuration().get("AccountingStorageType", "")
    except SlurmError:
        return False  # the job is submitted; its record matters more than where its past is kept
    return kept_by.removeprefix("accounting_storage/") not in ("", "none", "(null)")


def _check_path(path: Path) -> None:
    if unusable := sorted(set(str(path)) & set("%\\\n")):
        raise UserError(f"{path} holds {unusable[0]!r}, which Slurm takes for its own; set another `output`")


def _difference(one: Allocation, other: Allocation) -> str:
    ours, theirs = asdict(one), asdict(other)
    return ", ".join(f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key])


def _told(error: str) -> str:
    """sbatch's reason without its prefix; the last line is the one that says why."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in error.splitlines()]
    return "; ".join(line for line in lines if line) or "it gave no reason"
