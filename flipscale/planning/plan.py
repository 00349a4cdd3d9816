"""What a job will do, computed before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.budget import Budget, PhaseSpan
from flipscale.config import Job
from flipscale.data.tokenizer import CLIP_LENGTH, WORDPIECE_LENGTH
from flipscale.models.presets import ModelSpec, preset
from flipscale.planning.flops import parameter_count, training_flops


@dataclass(frozen=True)
class PhasePlan:
    name: str
    samples: int
    steps: int
    batch_size: int
    mask_ratio: float
    peak_lr: float
    warmup: int  # samples
    flops_per_sample: int  # forward and backward
    flops: int


@dataclass(frozen=True)
class Plan:
    model: str
    parameters: int
    vision_parameters: int
    text_parameters: int
    state_bytes: int  # fp32 weights and both AdamW moments
    samples: int
    steps: int
    flops: int
    phases: tuple[PhasePlan, ...]


def plan_job(job: Job) -> Plan:
    """Return the plan of `job`, with its preset's vocabulary. Raises UserError for a job that cannot run."""
    budget = Budget.of(job.phases, job.data.lanes)
    source = job.data.tokenizer
    default_length = WORDPIECE_LENGTH if source.kind == "wordpiece" else CLIP_LENGTH
    spec = preset(
        job.model.preset,
        image_size=job.model.image_size,
        patch_size=job.model.patch_size,
        context_length=source.context_length or default_length,
    )
    count = parameter_count(spec)
    phases = tuple(_phase_plan(span, spec) for span in budget.spans)
    return Plan(
        job.model.preset,
        count.total,
        count.vision,
        count.text,
        3 * 4 * count.total,
        budget.total,
        budget.steps,
        sum(phase.flops for phase in phases),
        phases,
    )


def _phase_plan(span: PhaseSpan, spec: ModelSpec) -> PhasePlan:
    phase = span.phase
    per_sample = training_flops(spec, 1, phase.mask_ratio)
    return PhasePlan(
        phase.name,
        phase.samples,
        span.steps,
        phase.batch_size,
        phase.mask_ratio,
        span.peak_lr,
        phase.warmup,
        per_sample,
        per_sample * phase.samples,
    )
