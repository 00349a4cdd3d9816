"""`flipscale cancel`."""

from __future__ import annotations

from flipscale.cli.options import Run
from flipscale.terminal import say


def cancel(run: Run) -> None:
    """End a run now: as `stop`, and cancel its Slurm jobs, or signal its processes on this machine."""
    from flipscale.orchestration.status.stopping import (
        cancel_all,
        job_ids,
        may_run,
        request_stop,
        terminate_processes,
    )
    from flipscale.runs.directory import existing_run

    directory = existing_run(run)
    status = request_stop(directory)
    if not may_run(status):
        say(f"nothing of {status.path} is running or queued; {status.next}")
        return

    jobs = cancel_all(directory, status)
    if jobs:
        working = any(not job.waits for job in jobs)
        rest = ": it has the cluster's KillWait to save before it is killed" if working else ""
        say(f"Slurm job {job_ids(jobs)} is cancelled{rest}")
        return

    signalled = terminate_processes(directory, status)
    if signalled.pids:
        pids = ", ".join(map(str, signalled.pids))
        say(f"process {pids} received SIGTERM, and saves before it ends")
    if signalled.unproven:
        pids = ", ".join(map(str, signalled.unproven))
        say(
            f"process {pids} was sent no signal: it has ended, or it is not the one of the run's heartbeats; "
            "the STOP file ends a training after its step"
        )
    if signalled.elsewhere or not (signalled.pids or signalled.unproven):
        nodes = ", ".join(signalled.elsewhere) or "another machine"
        say(f"what runs on {nodes} cannot be signalled from here; the STOP file ends it after its step")
