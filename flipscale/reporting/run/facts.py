"""All that the page of a run shows, gathered once. What cannot be gathered is a sentence that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flipscale.config import Job
from flipscale.documents import read_as
from flipscale.errors import StoppedEarly, UserError
from flipscale.orchestration.status.liveness import SlurmView
from flipscale.orchestration.status.run_status import RunStatus, read_status
from flipscale.rehearsal.results import Rehearsal
from flipscale.reporting.run.retrieval_examples import RetrievalExample, read_retrieval_examples
from flipscale.reporting.run.seen_samples import SeenSample, read_seen_samples
from flipscale.reporting.run.series import Series, read_series
from flipscale.reporting.run.stored_files import (
    CheckpointFacts,
    QuarantineFacts,
    read_checkpoints,
    read_quarantine_facts,
)
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.evaluations import RecordedEvaluation, scan_evaluations

CURVES = (
    "loss",
    "lr",
    "logit_scale",
    "grad_norm",
    "images_per_second",
    "tflops",
    "mfu",
    "data_wait_fraction",
    "peak_memory_gb",
    "skipped_steps",
)
_SEEN_SAMPLES = 6  # of each phase

T = TypeVar("T")


@dataclass(frozen=True)
class RunFacts:
    """What is known about a run."""

    run: RunDirectory
    job: Job
    job_text: str
    """The job as YAML, as of the last start."""
    status: RunStatus
    series: Series
    evaluations: list[RecordedEvaluation]
    """The evaluations that succeeded, oldest first."""
    failed_evaluations: list[RecordedEvaluation]
    checkpoints: list[CheckpointFacts]
    """The committed checkpoints, oldest first."""
    quarantine: QuarantineFacts
    seen_samples: list[SeenSample] | str
    """Training samples as the model saw them, or the reason why they cannot be shown."""
    retrieval_examples: list[RetrievalExample] | str
    """Validation images with their nearest captions, or the reason why they cannot be shown."""
    rehearsal: Rehearsal | str | None
    """The rehearsal before the submission, or the reason why it cannot be shown; None without one."""


def gather_facts(run: RunDirectory, report: Callable[[str], None]) -> RunFacts:
    """Read a run, in whatever state it is.

    Args:
        run: The run.
        report: A function that is called with a short description of each step that takes time.

    Raises:
        UserError: If the job of the run cannot be read.
    """
    job = recorded_job(run)
    status = read_status(run.path, SlurmView())
    evaluations = list(scan_evaluations(run.path))

    report("reading the metrics")
    series = read_series(run.path, CURVES)

    report("reading training samples")
    seen_samples = _or_reason(lambda: read_seen_samples(run, job, status.samples, _SEEN_SAMPLES))

    return RunFacts(
        run=run,
        job=job,
        job_text=run.job.read_text(encoding="utf-8"),
        status=status,
        series=series,
        evaluations=[evaluation for evaluation in evaluations if evaluation.error is None],
        failed_evaluations=[evaluation for evaluation in evaluations if evaluation.error is not None],
        checkpoints=read_checkpoints(run),
        quarantine=read_quarantine_facts(run),
        seen_samples=seen_samples,
        retrieval_examples=_or_reason(
            lambda: read_retrieval_examples(
                run, job, has_checkpoint=status.checkpoint is not None, report=report
            )
        ),
        rehearsal=_or_reason(lambda: _read_rehearsal(run)),
    )


def _read_rehearsal(run: RunDirectory) -> Rehearsal | None:
    try:
        return read_as(Rehearsal, run.rehearsal, "delete it")
    except FileNotFoundError:
        return None


def _or_reason(work: Callable[[], T]) -> T | str:
    """Return the result of some work, or the reason why it failed: the page shows all the rest.

    A RuntimeError is possible because the GPU may have no free memory.
    """
    try:
        return work()
    except (UserError, StoppedEarly, OSError, RuntimeError) as error:
        return str(error).strip().partition("\n")[0]
