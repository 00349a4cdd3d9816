"""`flipscale train`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

from flipscale.config import Job, load_job, parse_duration
from flipscale.distributed.placement import read_placement
from flipscale.errors import UserError
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.runs.directory import RunDirectory, existing_run, run_directory


def train_job(path: Path, overrides: list[str], time_limit: str | None) -> None:
    """Train the job, or the run of a directory, in this process: one of those that a launcher started."""
    job, run = _job_and_run(path, overrides)
    try:
        seconds = parse_duration(time_limit) if time_limit else None
    except ValueError as error:
        raise UserError(f"--time-limit: {error}") from None

    # Before the slow imports, so that a signal during them is kept until the first step.
    stop = StopRequests(run.stop_file, deadline=time.monotonic() + seconds if seconds is not None else None)
    stop.listen()

    from flipscale.distributed.world import join_world, leave_world
    from flipscale.orchestration.segments.segment import Segment, never_met
    from flipscale.training.setup import check_job
    from flipscale.training.trainer import train

    place = read_placement()
    budget = check_job(job, place.size)
    managed = None
    if place.under_slurm:
        from flipscale.orchestration.segments.managed_job import managed_job

        managed = managed_job(run, place)
    try:
        world = join_world(place)
    except (RuntimeError, OSError) as error:  # torch's DistNetworkError and its kind are RuntimeErrors
        never_met(managed, error)
        raise
    segment = Segment(job, run, world, stop, managed)
    error: BaseException | None = None
    try:
        with segment.held() if world.leads else nullcontext():
            train(job, budget, segment)
    except BaseException as ended:
        error = ended
        raise
    finally:
        segment.leave(error)
        leave_world()


def _job_and_run(path: Path, overrides: list[str]) -> tuple[Job, RunDirectory]:
    if not path.is_dir():
        job = load_job(path, overrides)
        return job, run_directory(job)
    run = existing_run(path)
    return load_job(run.job, [*overrides, f"output={run.path}"]), run
