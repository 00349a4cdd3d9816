"""What may change in the job file of a run between two of its starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.config.problems import describe_problem
from flipscale.errors import UserError

# Keys that may differ between two starts of a run: they change neither the samples nor the mathematics.
CHANGEABLE = (
    "output",
    "data.train",  # the index fingerprint shows whether it is the same data
    "data.index",
    "data.allow_pipe",
    "data.cache",
    "data.max_bad_fraction",
    "data.workers",
    "data.tokenizer.vocab",  # the tokenizer's fingerprint shows whether it is the same
    "deterministic",
    # All of sharding except the precision: what it distributes and recomputes changes no result.
    "sharding.strategy",
    "sharding.shard_size",
    "sharding.reshard_after_forward",
    "sharding.offload_optimizer",
    "sharding.activation_checkpointing",
    "sharding.compile",
    "sharding.micro_batch",
    "checkpoint",
    "logging",
    "evaluation",
    "hang",
    "cluster",
)

CHANGEABLE_OF_PHASES = ("micro_batch",)
"""Keys of phases that have begun with which a run can be resumed."""


def check_same_job(path: Path, before: Job, now: Job, samples_seen: int) -> None:
    """Check that a run can be resumed with a changed job.

    Args:
        path: The run directory, for the message.
        before: The job that the run was last started with.
        now: The job of this start.
        samples_seen: Samples of the checkpoint that the run is resumed from.

    Raises:
        UserError: If the jobs differ in more than CHANGEABLE keys and phases that have not begun.
    """
    if before.name != now.name:
        raise UserError(
            f"{path} holds the run of the job {before.name!r}, not {now.name!r}; set another `output`"
        )

    old = job_leaves(before)
    new = job_leaves(now)
    changed = [
        f"{key} was {old.get(key, 'not set')}, now {new.get(key, 'not set')}"
        for key in _changed_keys(before, now, samples_seen)
    ]
    if changed:
        raise UserError(
            f"the job file changed since {path} began: {'; '.join(changed)}; change it back, or set "
            f"another `output` (in a run only {', '.join(CHANGEABLE)}, the micro_batch of phases and "
            "phases not yet begun may change)"
        )


def saved_job(checkpoint: Path, document: Mapping[str, object]) -> Job:
    """Return the job that a checkpoint was saved with.

    Args:
        checkpoint: The checkpoint, for the message.
        document: The job in its manifest.

    Raises:
        UserError: If this version of flipscale cannot read the job.
    """
    try:
        return Job.model_validate(document)
    except ValidationError as error:
        raise UserError(
            f"{checkpoint}: the job in its manifest is not one of this version of flipscale "
            f"({describe_problem(Job, error)}); train with the version that wrote it"
        ) from None


def belongs_to(document: Mapping[str, object], job: Mapping[str, object], samples_seen: int) -> bool:
    """Return whether a checkpoint is one of the run of a job.

    Args:
        document: The job in the manifest of the checkpoint.
        job: The resolved job of the run, as a document.
        samples_seen: Samples of the checkpoint.
    """
    if document == job:
        return True
    try:
        before = Job.model_validate(document)
        now = Job.model_validate(job)
        return before.name == now.name and not _changed_keys(before, now, samples_seen)
    except (ValidationError, UserError):
        return False


def _changed_keys(before: Job, now: Job, samples_seen: int) -> list[str]:
    """Return the keys that differ and may not, sorted."""
    spans = Budget.of(before.phases, before.data.lanes).spans
    begun = sum(span.start < samples_seen for span in spans)
    old = job_leaves(before)
    new = job_leaves(now)
    return [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key, begun)
    ]


def _may_change(key: str, phases_begun: int) -> bool:
    if any(key == changeable or key.startswith(f"{changeable}.") for changeable in CHANGEABLE):
        return True
    if not key.startswith("phases."):
        return False

    _, number, name, *_ = key.split(".")
    return int(number) >= phases_begun or name in CHANGEABLE_OF_PHASES


def job_leaves(job: Job) -> dict[str, object]:
    """Return the values of a job by their keys, e.g. "phases.0.samples", without those that are not set."""
    return leaves(job.model_dump(mode="json", exclude_none=True))


def leaves(document: object, prefix: str = "") -> dict[str, object]:
    """Return the values of a nested document by their dotted keys."""
    items: Iterable[tuple[object, object]]
    if isinstance(document, dict) and document:
        items = cast("dict[object, object]", document).items()
    elif isinstance(document, list) and document:
        items = enumerate(cast("list[object]", document))
    else:
        return {prefix[:-1]: document}
    return {key: leaf for name, value in items for key, leaf in leaves(value, f"{prefix}{name}.").items()}
