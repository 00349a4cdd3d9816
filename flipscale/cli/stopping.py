"""`flipscale stop` and `flipscale cancel`: the STOP file first, so that nothing starts the run again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from flipscale.errors import RunError, UserError
from flipscale.orchestration.status.liveness import UNKNOWN, JobStatus, ProcessStatus, SlurmView, here
from flipscale.orchestration.status.outlook import goes_on_by_itself
from flipscale.orchestration.status.run_status import RunStatus, read_status
from flipscale.runs.directory import RunDirectory, existing_run
from flipscale.slurm import SlurmError, run_slurm

_LOOK_SECONDS = 1.0
_ASK_SLURM_SECONDS = 10.0


def stop_run(path: Path, *, wait: bool) -> None:
    run = existing_run(path)
    status = _told_to_stop(run)
    if status is None:
        return
    waiting = [job for job in status.jobs if _is_slurm(job) and (job.waits or job.state == UNKNOWN)]
    if waiting:
        # A job that started in this moment is left to the STOP file.
        _scancel(run, waiting, "--state=PENDING")
        print(f"Slurm job {_ids(waiting)} is taken from the queue")
    if len(waiting) < len(status.jobs) or any(process.alive for process in status.processes):
        print(f"{run.path} saves and ends after its current step, and is not started again")
    if wait:
        _wait(run)
    else:
        print(f"`flipscale status {quote(str(path))}` shows when it has ended and how it goes on")


def cancel_run(path: Path) -> None:
    run = existing_run(path)
    status = _told_to_stop(run)
    if status is None:
        return
    jobs = [job for job in status.jobs if _is_slurm(job) and (job.live or job.state == UNKNOWN)]
    if jobs:
        _scancel(run, jobs)
        working = [job for job in jobs if not job.waits]
        rest = ": it has the cluster's KillWait to save before it is killed" if working else ""
        print(f"Slurm job {_ids(jobs)} is cancelled{rest}")
        return
    local = [int(job.job_id) for job in status.jobs if job.cluster == "local" and job.live]
    ours = [process for process in status.processes if not process.ended and not process.gone]
    pids = local + [process.pid for process in ours if process.node == here()]
    reached = [pid for pid in dict.fromkeys(pids) if _terminate(pid)]
    if reached:
        print(f"process {', '.join(map(str, reached))} was told to save and end")
    elsewhere: Sequence[ProcessStatus] = [process for process in ours if process.node != here()]
    if elsewhere or not reached:
        nodes = ", ".join(sorted({process.node for process in elsewhere})) or "another machine"
        print(f"what runs on {nodes} cannot be signalled from here; the STOP file ends it after its step")


def _told_to_stop(run: RunDirectory) -> RunStatus | None:
    """Ask the run to stop; returns what it was doing, or None where it does nothing, which is said."""
    status = read_status(run.path, SlurmView())
    if not _may_run(status):
        print(_nothing_runs(status))
        return None
    _request_stop(run)
    return status


def _may_run(status: RunStatus) -> bool:
    """Whether anything of the run is alive or queued, as far as could be found out."""
    if status.state == "done":
        return False
    return goes_on_by_itself(status.state) or any(job.state == UNKNOWN for job in status.jobs)


def _nothing_runs(status: RunStatus) -> str:
    return f"nothing of {status.path} is running or queued; {status.next}"


def _request_stop(run: RunDirectory) -> None:
    try:
        run.stop_file.touch()
    except OSError as error:
        raise UserError(f"{run.stop_file} cannot be written: {error.strerror}") from None


def _is_slurm(job: JobStatus) -> bool:
    return job.cluster == "slurm"


def _ids(jobs: Sequence[JobStatus]) -> str:
    return ", ".join(job.job_id for job in jobs)


def _scancel(run: RunDirectory, jobs: Sequence[JobStatus], *options: str) -> None:
    try:
        run_slurm("scancel", *options, *(job.job_id for job in jobs))
    except SlurmError as error:
        raise RunError(
            f"{run.stop_file} is set, so that a job ends as it starts, but Slurm did not cancel "
            f"{_ids(jobs)}: {error}; repeat the command"
        ) from None


def _terminate(pid: int) -> bool:
    """Send SIGTERM; False where the process ended in between."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise UserError(
            f"process {pid} belongs to another user; the STOP file ends it after its step"
        ) from None
    return True


def _wait(run: RunDirectory) -> None:
    view = SlurmView(_ASK_SLURM_SECONDS)
    print("waiting until it has ended; Ctrl-C leaves the request in place")
    while _may_run(status := read_status(run.path, view)):
        time.sleep(_LOOK_SECONDS)
    print(f"{status.path}: {status.next}")
