"""The shape of a job's model in each of its phases, and thus in each checkpoint of its run."""

from __future__ import annotations

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.config.job import Phase
from flipscale.errors import UserError
from flipscale.models.presets import ModelSpec, resized


def phase_specs(spec: ModelSpec, job: Job) -> tuple[ModelSpec, ...]:
    """The model's shape in every phase of `job`, in order.

    Args:
        spec: the job's model, which a phase has where it says nothing else.

    Raises UserError naming a phase whose image size is no multiple of its patch size.
    """
    return tuple(_phase_spec(spec, number, phase) for number, phase in enumerate(job.phases))


def checkpoint_spec(spec: ModelSpec, job: Job, samples_seen: int) -> ModelSpec:
    """The model's shape in a checkpoint: that of the phase in which its last sample was seen.

    So the checkpoint at the end of a phase has this phase's shape, though the next phase begins there.
    """
    span = Budget.of(job.phases, job.data.lanes).span_at(max(0, samples_seen - 1))
    return phase_specs(spec, job)[span.index]


def _phase_spec(spec: ModelSpec, number: int, phase: Phase) -> ModelSpec:
    try:
        return resized(spec, phase.image_size, phase.patch_size)
    except UserError as error:
        raise UserError(f"phases.{number} ({phase.name}): {error}") from None
