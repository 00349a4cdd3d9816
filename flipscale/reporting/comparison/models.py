"""The models of a comparison, with what is known about their training."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.config import Job
from flipscale.models.presets import ModelSpec
from flipscale.reporting.comparison.model_names import ModelKind
from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True)
class ComparedModel:
    """A model of the comparison; None stands for what is not known about its training."""

    label: str
    source: str
    """The name as the user wrote it."""
    kind: ModelKind
    architecture: str
    parameters: int
    image_size: int
    """The side of the images in pixels."""
    samples_seen: int | None
    batch: int | None
    training_flops: float | None
    gpu_hours: float | None
    remark: str = ""
    """What the reader of the page should know about the model."""
    from_weights: bool = False
    """Whether training started from weights of others: its own cost then says little about its scores."""
    job: Job | None = None
    run: RunDirectory | None = None
    spec: ModelSpec | None = None
    shapes: tuple[ModelSpec, ...] = ()
    """The shape of the model in each phase of its job."""
