"""`flipscale stop`."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from flipscale.cli.options import Run
from flipscale.terminal import say


def stop(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the run has saved and ended.")] = False,
) -> None:
    """Stop a run within two steps, with a checkpoint, and do not restart it. Removes queued jobs."""
    from flipscale.orchestration.status.stopping import (
        cancel_queued,
        job_ids,
        may_run,
        request_stop,
        wait_until_ended,
    )
    from flipscale.runs.directory import existing_run

    directory = existing_run(run)
    status = request_stop(directory)
    if not may_run(status):
        say(f"nothing of {status.path} is running or queued; {status.next}")
        return

    waiting = cancel_queued(directory, status)
    if waiting:
        say(f"Slurm job {job_ids(waiting)} is taken from the queue")
    if len(waiting) < len(status.jobs) or any(process.alive for process in status.processes):
        say(f"{directory.path} saves and ends within two steps, and is not started again")

    if wait:
        say("waiting until it has ended; Ctrl-C leaves the request in place")
        ended = wait_until_ended(directory)
        say(f"{ended.path}: {ended.next}")
    else:
        say(f"`flipscale status {quote(str(run))}` shows when it has ended and how to resume it")
