"""Stopping a run from outside: the STOP file first, so that nothing starts the run again, then its jobs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flipscale.errors import RunError, UserError
from flipscale.orchestration.status.liveness import UNKNOWN, JobStatus, SlurmView, here
from flipscale.orchestration.status.outlook import continues_by_itself
from flipscale.orchestration.status.run_status import RunStatus, read_status
from flipscale.runs.directory import RunDirectory
from flipscale.slurm import SlurmError, run_slurm

_LOOK_SECONDS = 1.0
_ASK_SLURM_SECONDS = 10.0


@dataclass(frozen=True)
class Signalled:
    """The processes of a run that were sent SIGTERM, and where others are."""

    pids: list[int]
    elsewhere: list[str]  # nodes whose processes cannot be signalled from here


def may_run(status: RunStatus) -> bool:
    """Return whether anything of the run is alive or queued, or may be: Slurm does not always answer."""
    if status.state == "done":
        return False

    return continues_by_itself(status.state) or any(job.state == UNKNOWN for job in status.jobs)


def request_stop(run: RunDirectory) -> RunStatus:
    """Write the STOP file of a run, if it may run at all.

    Returns:
        What the run was doing before.

    Raises:
        UserError: If the file cannot be written.
    """
    status = read_status(run.path, SlurmView())
    if may_run(status):
        try:
            run.stop_file.touch()
        except OSError as error:
            raise UserError(f"{run.stop_file} cannot be written: {error.strerror}") from None

    return status


def cancel_queued(run: RunDirectory, status: RunStatus) -> list[JobStatus]:
    """Take the run's waiting jobs out of Slurm's queue.

    A job that starts in this moment is left to the STOP file.

    Returns:
        The jobs that were taken out.

    Raises:
        RunError: If Slurm does not cancel them.
    """
    jobs = [job for job in _slurm_jobs(status) if job.waits or job.state == UNKNOWN]
    _cancel(run, jobs, "--state=PENDING")
    return jobs


def cancel_all(run: RunDirectory, status: RunStatus) -> list[JobStatus]:
    """Cancel the run's Slurm jobs, those that run included.

    Returns:
        The jobs that were cancelled.

    Raises:
        RunError: If Slurm does not cancel them.
    """
    jobs = [job for job in _slurm_jobs(status) if job.live or job.state == UNKNOWN]
    _cancel(run, jobs)
    return jobs


def terminate_processes(status: RunStatus) -> Signalled:
    """Send SIGTERM to the run's processes on this machine.

    Raises:
        UserError: If a process belongs to another user.
    """
    local = [int(job.job_id) for job in status.jobs if job.cluster == "local" and job.live]
    running = [process for process in status.processes if not process.ended and not process.gone]
    pids = local + [process.pid for process in running if process.node == here()]

    return Signalled(
        pids=[pid for pid in dict.fromkeys(pids) if _terminate(pid)],
        elsewhere=sorted({process.node for process in running if process.node != here()}),
    )


def wait_until_ended(run: RunDirectory) -> RunStatus:
    """Wait until nothing of the run is alive or queued, and return its last status."""
    view = SlurmView(_ASK_SLURM_SECONDS)
    while may_run(status := read_status(run.path, view)):
        time.sleep(_LOOK_SECONDS)

    return status


def job_ids(jobs: Sequence[JobStatus]) -> str:
    """Return the numbers of jobs, as a message lists them."""
    return ", ".join(job.job_id for job in jobs)


def _slurm_jobs(status: RunStatus) -> list[JobStatus]:
    return [job for job in status.jobs if job.cluster == "slurm"]


def _cancel(run: RunDirectory, jobs: Sequence[JobStatus], *options: str) -> None:
    if not jobs:
        return

    try:
        run_slurm("scancel", *options, *(job.job_id for job in jobs))
    except SlurmError as error:
        raise RunError(
            f"{run.stop_file} is set, so that a job ends as it starts, but Slurm did not cancel "
            f"{job_ids(jobs)}: {error}; repeat the command"
        ) from None


def _terminate(pid: int) -> bool:
    """Send SIGTERM; returns False if the process has ended since."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise UserError(
            f"process {pid} belongs to another user; the STOP file ends it after its step"
        ) from None

    return True
