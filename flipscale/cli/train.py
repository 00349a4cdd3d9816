"""`flipscale train`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.options import JobFile, Overrides
from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.config import Job
    from flipscale.orchestration.segments.stop_requests import StopRequests
    from flipscale.runs.directory import RunDirectory


def train(
    job: JobFile,
    overrides: Overrides = None,
    time_limit: Annotated[
        str | None,
        typer.Option(help="Stop cleanly after this long, e.g. 30min (exit 75).", show_default=False),
    ] = None,
    from_zero: Annotated[
        bool, typer.Option("--from-zero", help="Begin again although the run's checkpoints are lost.")
    ] = False,
) -> None:
    """Train a job here, or in every process that torchrun starts; resume where it stopped."""
    loaded, run = _job_and_run(job, overrides or [])
    seconds = _seconds(time_limit)

    from flipscale.orchestration.segments.stop_requests import StopRequests

    # Listen before the slow imports, so that a signal during them is kept until the first step.
    deadline = None if seconds is None else time.monotonic() + seconds
    stop = StopRequests(run.stop_file, deadline=deadline)
    stop.listen()
    _train_segment(loaded, run, stop, from_zero=from_zero)


def _job_and_run(path: Path, overrides: list[str]) -> tuple[Job, RunDirectory]:
    """Load a job file, or the job file of a run directory."""
    from flipscale.config import load_job
    from flipscale.runs.directory import existing_run, run_directory

    if not path.is_dir():
        job = load_job(path, overrides)
        return job, run_directory(job)

    run = existing_run(path)
    return load_job(run.job, [*overrides, f"output={run.path}"]), run


def _seconds(time_limit: str | None) -> float | None:
    from flipscale.config import parse_duration

    try:
        return parse_duration(time_limit) if time_limit else None
    except ValueError as error:
        raise UserError(f"--time-limit: {error}") from None


def _train_segment(job: Job, run: RunDirectory, stop: StopRequests, *, from_zero: bool) -> None:
    """Train in this process, which is one of those that a launcher started, until the segment ends."""
    from flipscale.distributed.placement import read_placement
    from flipscale.distributed.world import leave_world
    from flipscale.orchestration.segments.meeting import failures_before_the_segment, find_managed_job, meet
    from flipscale.orchestration.segments.segment import Segment
    from flipscale.orchestration.segments.segment_exit import leave_segment
    from flipscale.training.check_job import prepare_job
    from flipscale.training.trainer import train as train_steps

    place = read_placement()
    with failures_before_the_segment(run, place):
        budget = prepare_job(job, place.size)
        managed = find_managed_job(run, place)
        world = meet(place, stop, managed)

    segment = Segment(run, world, stop, managed, hang=job.hang, checks_nodes=job.cluster.check_node)
    error: BaseException | None = None
    try:
        with segment.locked() if world.leads else nullcontext():
            train_steps(job, budget, segment, from_zero=from_zero)
    except BaseException as ended:
        error = ended
        raise
    finally:
        leave_segment(segment, error)
        leave_world()
