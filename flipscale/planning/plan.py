"""What a job will do and need, computed before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flipscale.budget import Budget, check_world_size
from flipscale.config import Job
from flipscale.data.text.tokenizer import CLIP_LENGTH, WORDPIECE_LENGTH
from flipscale.errors import UserError
from flipscale.models.of_job import phase_specs, preset_spec
from flipscale.models.presets import ModelSpec
from flipscale.planning.fit import advise, remedy
from flipscale.planning.flops import parameter_count
from flipscale.planning.memory import estimate_memory
from flipscale.planning.phase_plan import PhasePlan, plan_phase
from flipscale.planning.throughput import IMAGES_PER_CORE, Speed, count_segments, make_speed
from flipscale.sharding.limits import check_sharding

_HIGHEST_PRICE = 10**6  # per GPU-hour, in any currency; a larger one is a slip of the hand


@dataclass(frozen=True)
class Plan:
    """What a job will do and need."""

    model: str
    parameters: int
    """Parameters at the end. A phase of another patch or image size may have slightly more or fewer."""
    vision_parameters: int
    text_parameters: int
    decoder_parameters: int
    """Parameters of the reconstruction's decoder, which the exported model does not have."""
    state_bytes: int
    """Size of one checkpoint: weights and both AdamW moments."""
    samples: int
    steps: int
    flops: int
    phases: tuple[PhasePlan, ...]
    speed: Speed
    """The GPUs, their number, and the speed from which times are computed."""
    fits: bool
    advice: tuple[str, ...] | None
    """Overrides with which the job fits; empty if it fits, None if no change helps."""
    remedy: str | None
    """One sentence on what would make the job fit, if no change of its sharding does."""
    seconds: float
    gpu_hours: float
    cost: float | None
    """The price of all GPU-hours; None without a price of one."""
    images_per_core: float
    """Images per second that one core of the loader reads."""
    segments: int
    """Starts that the job's time limit makes necessary."""


def plan_job(
    job: Job,
    on: Speed | None = None,
    images_per_core: float = IMAGES_PER_CORE,
    price_per_gpu_hour: float | None = None,
) -> Plan:
    """Return the plan of a job, with its preset's vocabulary: no tokenizer is read.

    Args:
        job: The job.
        on: GPUs and their speed; default: those of `job.cluster`, as H100s.
        images_per_core: Images per second that one core of the loader reads.
        price_per_gpu_hour: The price of a GPU for an hour, in any currency.

    Raises:
        UserError: If the job cannot run.
    """
    if not 0 < images_per_core < math.inf:
        raise UserError(f"--images-per-core is {images_per_core:g}; give more than 0")
    if price_per_gpu_hour is not None and not 0 <= price_per_gpu_hour <= _HIGHEST_PRICE:
        raise UserError(f"--price-per-gpu-hour is {price_per_gpu_hour}; give 0 to {_HIGHEST_PRICE:,}")

    # Check the job before anything is computed from it.
    on = on or make_speed(None, job.cluster.gpus, gpus_per_node=job.cluster.gpus_per_node)
    budget = Budget.of(job.phases, job.data.lanes)
    check_world_size(on.gpus, job.data.lanes)
    check_sharding(job.sharding, on.gpus, "cuda")

    spec = model_shape(job)
    shapes = phase_specs(spec, job)
    memories = estimate_memory(job, spec, on.gpus)
    phases = tuple(
        plan_phase(job, span, shape, memory, on, images_per_core)
        for span, shape, memory in zip(budget.spans, shapes, memories, strict=True)
    )

    count = parameter_count(shapes[-1])
    fit = all(phase.fits for phase in phases)
    advice = () if fit else advise(job, spec, on.gpus, on.gpu.memory)
    seconds = sum(phase.seconds for phase in phases)
    gpu_hours = seconds * on.gpus / 3600
    return Plan(
        model=job.model.preset,
        parameters=count.total,
        vision_parameters=count.vision,
        text_parameters=count.text,
        decoder_parameters=count.decoder,
        state_bytes=state_bytes(job),
        samples=budget.total,
        steps=budget.steps,
        flops=sum(phase.flops for phase in phases),
        phases=phases,
        speed=on,
        fits=fit,
        advice=advice,
        remedy=remedy(job, spec, on.gpus, on.gpu) if advice is None else None,
        seconds=seconds,
        gpu_hours=gpu_hours,
        cost=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
        images_per_core=images_per_core,
        segments=count_segments(seconds, job.cluster.timeout),
    )


def model_shape(job: Job) -> ModelSpec:
    """Return the job's model with its preset's vocabulary: no tokenizer is read.

    A phase may change the shape of the model.
    """
    source = job.data.tokenizer
    default_length = WORDPIECE_LENGTH if source.kind == "wordpiece" else CLIP_LENGTH
    return preset_spec(job, context_length=source.context_length or default_length)


def state_bytes(job: Job) -> int:
    """Return the size of the largest checkpoint in bytes: weights and both AdamW moments."""
    largest = max(parameter_count(shape).total for shape in phase_specs(model_shape(job), job))
    return 3 * largest * (8 if job.sharding.precision == "fp64" else 4)
