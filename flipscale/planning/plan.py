"""What a job will do and need, computed before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flipscale.budget import Budget, PhaseSpan, check_world_size
from flipscale.config import Job
from flipscale.data.text.tokenizer import CLIP_LENGTH, WORDPIECE_LENGTH
from flipscale.errors import UserError
from flipscale.models.of_job import phase_specs, preset_spec
from flipscale.models.presets import ModelSpec
from flipscale.planning.fit import advise, fits
from flipscale.planning.flops import parameter_count, training_flops
from flipscale.planning.memory import PhaseMemory, estimate_memory
from flipscale.planning.throughput import (
    DEFAULT_GPU,
    IMAGES_PER_CORE,
    Speed,
    count_segments,
    make_speed,
    training_seconds,
)
from flipscale.sharding.limits import check_sharding


@dataclass(frozen=True)
class PhasePlan:
    """What one phase will do and need."""

    name: str
    samples: int
    steps: int
    batch_size: int
    mask_ratio: float
    text_mask_ratio: float
    image_size: int
    """Side of the images in pixels."""
    patch_size: int
    """Side of a patch in pixels."""
    peak_lr: float
    warmup: int
    """Samples."""
    flops_per_sample: int
    """FLOPs of forward and backward."""
    flops: int
    memory: PhaseMemory
    """The memory of one process, by part."""
    memory_bytes: int
    """The sum of the parts in device memory."""
    fits: bool
    seconds: float
    """Time of training only."""
    gpu_hours: float
    loader_cores: float
    """Cores per GPU that read samples as fast as the GPU trains."""


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
    seconds: float
    gpu_hours: float
    images_per_core: float
    """Images per second that one core of the loader reads."""
    segments: int
    """Starts that the job's time limit makes necessary."""


def plan_job(job: Job, on: Speed | None = None, images_per_core: float = IMAGES_PER_CORE) -> Plan:
    """Return the plan of a job, with its preset's vocabulary: no tokenizer is read.

    Args:
        job: The job.
        on: GPUs and their speed; default: those of `job.cluster`, as H100s.
        images_per_core: Images per second that one core of the loader reads.

    Raises:
        UserError: If the job cannot run.
    """
    if not 0 < images_per_core < math.inf:
        raise UserError(f"--images-per-core is {images_per_core:g}; give more than 0")

    # Check the job before anything is computed from it.
    on = on or make_speed(DEFAULT_GPU, job.cluster.gpus)
    budget = Budget.of(job.phases, job.data.lanes)
    check_world_size(on.gpus, job.data.lanes)
    check_sharding(job.sharding, on.gpus, "cuda")

    spec = model_shape(job)
    shapes = phase_specs(spec, job)
    memories = estimate_memory(job, spec, on.gpus)
    phases = tuple(
        _phase_plan(span, shape, memory, on, job.sharding.micro_batch, images_per_core)
        for span, shape, memory in zip(budget.spans, shapes, memories, strict=True)
    )

    count = parameter_count(shapes[-1])
    fit = all(phase.fits for phase in phases)
    seconds = sum(phase.seconds for phase in phases)
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
        advice=() if fit else advise(job, spec, on.gpus, on.gpu.memory),
        seconds=seconds,
        gpu_hours=seconds * on.gpus / 3600,
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


def _phase_plan(
    span: PhaseSpan,
    spec: ModelSpec,
    memory: PhaseMemory,
    on: Speed,
    micro_batch: int | None,
    images_per_core: float,
) -> PhasePlan:
    phase = span.phase
    masks = (phase.mask_ratio, phase.text_mask_ratio)
    flops_per_sample = training_flops(spec, 1, *masks)

    # GradCache computes the forward twice if a process works on its share in parts.
    in_parts = micro_batch is not None and micro_batch < -(-phase.batch_size // on.gpus)
    seconds = training_seconds(on, spec, phase.samples, *masks, forward_twice=in_parts)

    return PhasePlan(
        name=phase.name,
        samples=phase.samples,
        steps=span.steps,
        batch_size=phase.batch_size,
        mask_ratio=phase.mask_ratio,
        text_mask_ratio=phase.text_mask_ratio,
        image_size=spec.vision.image_size,
        patch_size=spec.vision.patch_size,
        peak_lr=span.peak_lr,
        warmup=phase.warmup,
        flops_per_sample=flops_per_sample,
        flops=flops_per_sample * phase.samples,
        memory=memory,
        memory_bytes=memory.total,
        fits=fits(memory.total, on.gpu.memory),
        seconds=seconds,
        gpu_hours=seconds * on.gpus / 3600,
        loader_cores=phase.samples / seconds / on.gpus / images_per_core,
    )
