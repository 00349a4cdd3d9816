"""Stopping a run from outside: the STOP file first, so that nothing starts the run again, then its jobs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flipscale.errors import RunError, UserError
from flipscale.orchestration.status.liveness import UNKNOWN, JobStatus, SlurmView, here
from flipscale.orchestration.status.outlook import continues_by_itself
from flipscale.orchestration.status.run_status import RunStatus, read_status
from flipscale.runs.directory import RunDirectory
from flipscale.runs.heartbeat import ENDED_STATES, Heartbeat, attempt_directory
from flipscale.runs.snapshot import read_files
from flipscale.slurm import SlurmError, cancel_jobs

_LOOK_SECONDS = 1.0
_ASK_SLURM_SECONDS = 10.0


@dataclass(frozen=True)
class Signalled:
    """The processes of a run that were sent SIGTERM, and where others are.

    Attributes:
        pids: The processes of this machine that were sent the signal.
        unproven: Those that it does not run, or not with the start and the command of their heartbeats.
        elsewhere: Nodes whose processes cannot be signalled from here.
    """

    pids: list[int]
    unproven: list[int]
    elsewhere: list[str]


def may_run(status: RunStatus) -> bool:
    """Return whether anything of the run is alive or queued, or may be: Slurm does not always answer."""
    if status.state == "done":
        return any(job.live for job in status.jobs)  # a job that has yet to leave its nodes

    return continues_by_itself(status.state) or any(job.state == UNKNOWN for job in status.jobs)


def request_stop(run: RunDirectory) -> RunStatus:
    """Write the STOP file of a run, if it may run at all.

    Returns:
        What the run was doing before.

    Raises:
        UserError: If the file cannot be written.
    """
    status = read_status(run.path, SlurmView())
    if may_run(status) and status.state != "done":
        try:
            run.stop_file.touch()
        except OSError as error:
            raise UserError(
                f"{run.stop_file} cannot be written ({error.strerror}); use `flipscale cancel`"
            ) from None

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
    _cancel(run, jobs, waiting=True)
    return jobs


def cancel_all(run: RunDirectory, status: RunStatus) -> list[JobStatus]:
    """Cancel the run's Slurm jobs, those that run included.

    Returns:
        The jobs that were cancelled.

    Raises:
        RunError: If Slurm does not cancel them.
    """
    jobs = [job for job in _slurm_jobs(status) if job.live or job.state == UNKNOWN]
    _cancel(run, jobs, waiting=False)
    return jobs


def terminate_processes(run: RunDirectory, status: RunStatus) -> Signalled:
    """Send SIGTERM to the run's processes on this machine.

    A number by itself proves nothing: a process is signalled if its start and its command are those of its
    heartbeat, and if it has the directory of the heartbeats open.

    Raises:
        UserError: If a process belongs to another user.
    """
    from flipscale.orchestration.cluster.local_executor import end_controller  # here: it imports submitit

    controllers = [job.job_id for job in status.jobs if job.cluster == "local" and job.live]
    beats = [beat for beat in read_files(run).heartbeats if beat.state not in ENDED_STATES]
    own = [beat for beat in beats if beat.node == here()]
    logs = run.path / "logs"

    sent = [int(pid) for pid in controllers if _sent(pid, lambda pid=pid: end_controller(pid, logs))]
    sent += [beat.pid for beat in own if _sent(beat.pid, lambda beat=beat: _terminate(run, beat))]
    return Signalled(
        pids=sent,
        unproven=[beat.pid for beat in own if beat.pid not in sent],
        elsewhere=sorted({beat.node for beat in beats if beat.node != here()}),
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


def _cancel(run: RunDirectory, jobs: Sequence[JobStatus], *, waiting: bool) -> None:
    if not jobs:
        return

    try:
        cancel_jobs([job.job_id for job in jobs], waiting=waiting)
    except SlurmError as error:
        raise RunError(
            f"{run.stop_file} is set, so that a job ends as it starts, but Slurm did not cancel "
            f"{job_ids(jobs)}: {error}; repeat the command"
        ) from None


def _terminate(run: RunDirectory, beat: Heartbeat) -> bool:
    return beat.mark.send(signal.SIGTERM, holds=attempt_directory(run.path, beat.attempt))


def _sent(pid: int | str, send: Callable[[], bool]) -> bool:
    try:
        return send()
    except PermissionError:
        raise UserError(
            f"process {pid} belongs to another user; the STOP file ends it after its step"
        ) from None
