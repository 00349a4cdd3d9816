"""The record of a run's submissions: one line of RUN/submissions.jsonl for each job that was submitted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from flipscale.addresses import reference_names
from flipscale.config import Job, Site
from flipscale.data.shards.http_credentials import TOKEN
from flipscale.errors import UserError
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.local_executor import controller_lives
from flipscale.runs.directory import RunDirectory
from flipscale.runs.manifest import committed_samples
from flipscale.runs.secret_values import job_addresses
from flipscale.runs.submissions import (
    Submission,
    SubmittedJob,
    append_submission,
    read_submitted_jobs,
)
from flipscale.slurm import SlurmError, query_queue, read_configuration


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


def check_no_secret_variables(job: Job, variables: Iterable[str]) -> None:
    """Check that a site file sets no variable that holds a secret: the batch script would show it.

    Args:
        job: The job.
        variables: Names of the variables that the site file sets.

    Raises:
        UserError: If an address of the job refers to one of them, or if one is the token of web servers.
    """
    secret = {TOKEN}.union(*(reference_names(address) for _, address in job_addresses(job)))
    if shown := sorted(secret.intersection(variables)):
        raise UserError(
            f"the site file sets {shown[0]}, which the batch script would show to everybody; export it in "
            f"the shell that submits, or set {shown[0]}_FILE to a file that holds it"
        )


def living_jobs(run: RunDirectory) -> list[SubmittedJob]:
    """Return the jobs of the run that are queued or running; asks Slurm at most once.

    Raises:
        UserError: If Slurm does not answer, because two jobs of one run would compete for it, or if the
            record of a submission is damaged.
    """
    jobs = read_submitted_jobs(run)
    in_slurm = [job.job_id for job in jobs if job.cluster == "slurm"]
    try:
        states = query_queue(in_slurm)
    except SlurmError as error:
        raise UserError(f"whether a job of {run.path} still runs is not known: {error}; try again") from None

    return [
        job
        for job in jobs
        if (job.cluster == "local" and controller_lives(job.job_id, logs(run)))
        or (job.job_id in states and states[job.job_id].live)
    ]


def check_work_left(run: RunDirectory, job: Job) -> None:
    """Check that a run has not spent the budget of its job.

    Raises:
        UserError: If a checkpoint holds the whole budget.
    """
    total = sum(phase.samples for phase in job.phases)
    if committed_samples(run) >= total:
        raise UserError(
            f"{run.path} is done: its budget of {total:,} samples is spent; use it (`flipscale export "
            f"{quote(str(run.path))} OUT`), or add a phase to the job to train more"
        )


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
