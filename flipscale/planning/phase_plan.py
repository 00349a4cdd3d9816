"""What one phase of a job will do and need."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.budget import PhaseSpan
from flipscale.config import Job
from flipscale.models.presets import ModelSpec
from flipscale.planning.fit import fits
from flipscale.planning.flops import CAPTION_TOKENS, training_flops
from flipscale.planning.memory import PhaseMemory
from flipscale.planning.phase_time import phase_step
from flipscale.planning.step_time import Bound, StepTime
from flipscale.planning.throughput import Speed


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
    schedule: str
    """How the rate falls after the warm-up: `cosine` or `constant_cooldown`."""
    cooldown: int | None
    """Samples of the cooldown; None with a cosine."""
    flops_per_sample: int
    """FLOPs of forward and backward."""
    flops: int
    memory: PhaseMemory
    """The memory of one process, by part."""
    memory_bytes: int
    """The sum of the parts in device memory."""
    fits: bool
    step: StepTime | None
    """Seconds of a step by what they are spent on; None if the speed is measured."""
    bound: Bound | None
    """What a faster step needs first; None if the speed is measured."""
    step_seconds: float
    seconds: float
    """Time of training only."""
    gpu_hours: float
    loader_cores: float
    """Cores per GPU that read samples as fast as the GPU trains."""


def plan_phase(
    job: Job,
    span: PhaseSpan,
    spec: ModelSpec,
    memory: PhaseMemory,
    on: Speed,
    images_per_core: float,
) -> PhasePlan:
    """Return the plan of a phase.

    Args:
        job: The job.
        span: The phase at its place in the run.
        spec: The shape of the model in this phase.
        memory: The memory of one process in this phase.
        on: The machine.
        images_per_core: Images per second that one core of the loader reads.
    """
    phase = span.phase
    ratios = (phase.mask_ratio, phase.text_mask_ratio)
    flops_per_sample = training_flops(spec, 1, *ratios, caption_tokens=CAPTION_TOKENS)

    step = phase_step(job, phase, spec, on, images_per_core)
    if step is None:
        seconds = phase.samples / (on.images_per_second or 1)
    else:
        seconds = phase.samples / phase.batch_size * step.total

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
        schedule=phase.schedule,
        cooldown=phase.cooldown,
        flops_per_sample=flops_per_sample,
        flops=flops_per_sample * phase.samples,
        memory=memory,
        memory_bytes=memory.total,
        fits=fits(memory.total, on.gpu.memory),
        step=step,
        bound=None if step is None else step.bound,
        step_seconds=seconds * phase.batch_size / phase.samples,
        seconds=seconds,
        gpu_hours=seconds * on.gpus / 3600,
        loader_cores=phase.samples / seconds / on.gpus / images_per_core,
    )
