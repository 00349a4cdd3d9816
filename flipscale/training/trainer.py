"""Train a job: from its newest checkpoint to the end of its budget, or to a request to stop."""

from __future__ import annotations

import logging

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.orchestration.segments.segment import Segment
from flipscale.progress import Progress
from flipscale.runs.directory import prepare
from flipscale.runs.identity import check_identity
from flipscale.runs.resume_point import find_resume_point
from flipscale.training.data import open_data
from flipscale.training.loop import TrainingLoop
from flipscale.training.precision import slow_precision
from flipscale.training.stage import Stage

_log = logging.getLogger(__name__)


def train(job: Job, budget: Budget, segment: Segment, *, from_zero: bool = False) -> Progress:
    """Train a job until its budget is spent; all processes call it together.

    Args:
        job: The job.
        budget: The budget of the job; see `check_job`.
        segment: This start of the run.
        from_zero: Whether it may begin at zero though its checkpoints are lost; see `find_resume_point`.

    Returns:
        The progress at the end of the budget.

    Raises:
        UserError: If the job, its data or its run directory is wrong.
        StoppedEarly: If a stop was requested. A checkpoint is committed, and the same call resumes from it.
        RunError: If the run cannot continue.
    """
    run = segment.run
    world = segment.world

    # Find the progress first: the directory and the ledger are checked against it.
    newest = world.lead(lambda: find_resume_point(run, from_zero=from_zero))
    progress = newest.progress if newest else Progress.of_new_run()
    saved = newest.saved_job() if newest else None
    world.lead(lambda: prepare(run, job, progress.samples_seen, saved))
    segment.begin(progress)
    if world.leads:
        run.forget_zero_request()  # the ledger says now that the run began at zero
    if world.leads and (warning := slow_precision(job.sharding.precision, world.device)):
        _log.warning("%s", warning)

    # Check the data before the model takes memory: other data would be another run.
    data = open_data(job, run.path, budget, world)
    tokenizer = data.tokenizer
    world.lead(lambda: check_identity(run, data.identity(), tokenizer.save, progress.samples_seen))

    if newest:
        _log.info("resuming from %s", newest.path)
    stage = Stage(job, budget, data.tokenizer, run.weights, world, newest)
    return TrainingLoop(job, budget, segment, data, stage, progress).run()
