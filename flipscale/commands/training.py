"""`flipscale train`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

from flipscale.config import load_job, parse_duration
from flipscale.errors import UserError
from flipscale.run_directory import locked, run_directory
from flipscale.training.stop import StopRequests


def train_job(path: Path, overrides: list[str], time_limit: str | None) -> None:
    """Train the job in this process, one of those that a launcher started."""
    job = load_job(path, overrides)
    try:
        seconds = parse_duration(time_limit) if time_limit else None
    except ValueError as error:
        raise UserError(f"--time-limit: {error}") from None
    run = run_directory(job)

    # Before the slow imports, so that a signal during them is kept until the first step.
    deadline = time.monotonic() + seconds if seconds is not None else None
    stop = StopRequests(run.stop_file, deadline=deadline)
    stop.listen()

    from flipscale.training.setup import check_job
    from flipscale.training.trainer import train
    from flipscale.world import join_world, leave_world, planned_world_size

    budget = check_job(job, planned_world_size())
    world = join_world()
    try:
        with locked(run) if world.leads else nullcontext():
            train(job, budget, run, world, stop)
    finally:
        leave_world()
