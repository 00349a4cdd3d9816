"""Hand a run to Slurm, or to submitit on this machine, and record the submission."""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from submitit.core.utils import FailedJobError, FailedSubmissionError

from flipscale.config import Job, Site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.allocation import Allocation, resolve_allocation
from flipscale.orchestration.cluster.batch_script import ScriptOptions, SlurmScript, write_script
from flipscale.orchestration.cluster.blamed_nodes import blamed_nodes
from flipscale.orchestration.cluster.launcher import Launch
from flipscale.orchestration.cluster.local_executor import DetachedExecutor
from flipscale.orchestration.cluster.refusals import explain_refusal
from flipscale.orchestration.cluster.reservation import reserved
from flipscale.orchestration.cluster.submission import (
    check_no_secret_variables,
    logs,
    record_submission,
)
from flipscale.runs.directory import RunDirectory
from flipscale.runs.submissions import ClusterKind, Submission, SubmittedJob


def submit_run(
    run: RunDirectory,
    job: Job,
    site: Site,
    *,
    cluster: ClusterKind,
    dependency: str | None = None,
    from_zero: bool = False,
) -> Submission:
    """Submit a job; its run directory is created or continued. Returns the recorded submission.

    It prints nothing and may be called inside a job, then within submitit.helpers.clean_env().

    Args:
        run: The run directory of `job`.
        job: The resolved job file.
        site: The cluster.
        cluster: `slurm`, or `local` for this machine.
        dependency: Id of a job of this run that may still be alive; the new job starts when that one has
            ended.
        from_zero: Whether the run may begin at zero though its checkpoints are lost.

    Raises:
        UserError: If another job of the run than `dependency` is queued or running, if another submission of
            the run is in progress, if its checkpoints are lost, or if Slurm refuses the job.
    """
    allocation = resolve_allocation(job, site)
    check_no_secret_variables(job, site.environment)

    with reserved(run, job, dependency, from_zero=from_zero):
        if cluster == "slurm":
            script = script_for([(run, job)], site, dependency=dependency)
            (job_id,) = _submit(script, [run], site)
        else:
            executor = DetachedExecutor(logs(run), allocation, site)
            job_id = executor.submit(Launch(str(run.path), site.launcher)).job_id
        return record_submission(run, SubmittedJob(cluster, job_id, dependency), allocation, site)


def submit_array(
    runs: Sequence[tuple[RunDirectory, Job]],
    site: Site,
    *,
    at_most: int | None = None,
    from_zero: bool = False,
) -> list[Submission]:
    """Submit several jobs to Slurm as one array; return their submissions in order.

    Args:
        runs: The jobs and their run directories.
        site: The cluster.
        at_most: Number of jobs that may run at the same time; None for all.
        from_zero: As in `submit_run`.

    Raises:
        UserError: As `submit_run`, and if the jobs request different resources.
    """
    if len(runs) == 1:
        return [submit_run(*runs[0], site, cluster="slurm", from_zero=from_zero)]

    script = script_for(runs, site, at_most=at_most)
    folder = script.folder

    with ExitStack() as stack:
        for run, job in runs:
            stack.enter_context(reserved(run, job, None, from_zero=from_zero))

        # The links must exist before the job does: its elements may start at once.
        folder.mkdir()
        for number, (run, _) in enumerate(runs):
            (folder / str(number)).symlink_to(logs(run))
        try:
            job_ids = _submit(script, [run for run, _ in runs], site)
        except UserError:
            shutil.rmtree(folder)
            raise

        return [
            record_submission(run, SubmittedJob("slurm", job_id), resolve_allocation(job, site), site)
            for (run, job), job_id in zip(runs, job_ids, strict=True)
        ]


def script_for(
    runs: Sequence[tuple[RunDirectory, Job]],
    site: Site,
    *,
    dependency: str | None = None,
    at_most: int | None = None,
) -> SlurmScript:
    """Return the batch script of these runs, to be shown or submitted; writes nothing.

    Args:
        runs: The jobs and their run directories; several become an array.
        site: The cluster.
        dependency: Id of the job that the new one waits for.
        at_most: Number of array elements that may run at the same time; None for all.

    Raises:
        UserError: If several jobs request different resources or share a run directory.
    """
    paths = Counter(run.path for run, _ in runs)
    for path, times in paths.items():
        if times > 1:
            raise UserError(f"{times} of these jobs write to {path}; give each its own name or output")
    allocation = _common_allocation([job for _, job in runs], site)
    for _, job in runs:
        check_no_secret_variables(job, site.environment)

    (first_run, first_job), *others = runs
    folder = logs(first_run)
    name = first_job.name
    if others:
        folder = folder / f"array_{secrets.token_hex(4)}"
        name = f"{name}_and_{len(others)}_more"

    blamed = blamed_nodes([run for run, _ in runs], site, allocation)
    options = ScriptOptions(
        folder=folder,
        name=name,
        exclude=blamed.left_out,
        dependency=dependency,
        at_most=at_most,
    )
    return write_script([run for run, _ in runs], allocation, site, options)


def require_slurm() -> None:
    """Raise UserError if this machine cannot submit to Slurm."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on PATH; submit where Slurm's commands are, or train on this machine only, "
            "with --cluster local"
        )


def _submit(script: SlurmScript, runs: Sequence[RunDirectory], site: Site) -> list[str]:
    """Submit the script; return one job id per run."""
    require_slurm()
    try:
        jobs = script.submit_array([Launch(str(run.path), site.launcher) for run in runs])
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(explain_refusal(str(error))) from None
    finally:
        # A refused submission leaves files of submitit behind.
        for pattern in (".submission_file_*", f"{'[0-9a-f]' * 32}.pkl"):
            for file in script.folder.glob(pattern):
                file.unlink()
    return [job.job_id for job in jobs]


def _common_allocation(jobs: Sequence[Job], site: Site) -> Allocation:
    allocations = {resolve_allocation(job, site): job.name for job in jobs}
    if len(allocations) > 1:
        (one, first), (other, second), *_ = allocations.items()
        raise UserError(
            f"the jobs of an array ask for the same resources, but {first} and {second} differ "
            f"({_difference(one, other)}); submit them one by one, or make them equal"
        )
    return next(iter(allocations))


def _difference(one: Allocation, other: Allocation) -> str:
    ours = asdict(one)
    theirs = asdict(other)
    return ", ".join(f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key])
