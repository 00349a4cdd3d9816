"""`flipscale plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from flipscale.cli.console import print_table
from flipscale.config import Job, load_job
from flipscale.formatting import format_count, format_gib, format_hours, format_millions
from flipscale.planning.plan import Plan, cluster_gpus, plan_job
from flipscale.planning.throughput import DEFAULT_GPU, IMAGES_PER_CORE, make_speed

_PARTS = ("weights", "gradients", "moments", "gathered", "activations", "loss", "batch")


def show_plan(
    path: Path,
    overrides: list[str],
    gpu: str = DEFAULT_GPU,
    gpus: int | None = None,
    mfu: float | None = None,
    images_per_second: float | None = None,
    images_per_core: float | None = None,
    *,
    as_json: bool,
) -> None:
    job = load_job(path, overrides)
    on = make_speed(gpu, cluster_gpus(job) if gpus is None else gpus, mfu, images_per_second)
    plan = plan_job(job, on, IMAGES_PER_CORE if images_per_core is None else images_per_core)
    if as_json:
        print(json.dumps(asdict(plan), indent=2))
        return
    print_budget(plan)
    _print_memory(plan)
    _print_time(plan, job)


def print_budget(plan: Plan) -> None:
    inputs = [f"{phase.image_size} / {phase.patch_size}" for phase in plan.phases]
    shapes_differ = len(set(inputs)) > 1
    text_masked = any(phase.text_mask_ratio for phase in plan.phases)
    decoder = f", {format_millions(plan.decoder_parameters)} decoder" if plan.decoder_parameters else ""
    print_table(
        (
            *("phase", "samples", "steps", "batch", "masked"),
            *(("text masked",) if text_masked else ()),
            *(("image / patch",) if shapes_differ else ()),
            *("peak lr", "warm-up", "FLOPs a sample", "FLOPs"),
        ),
        [
            (
                phase.name,
                format_count(phase.samples),
                f"{phase.steps:,}",
                f"{phase.batch_size:,}",
                f"{phase.mask_ratio:.0%}",
                *((f"{phase.text_mask_ratio:.0%}",) if text_masked else ()),
                *((size,) if shapes_differ else ()),
                f"{phase.peak_lr:.4g}",
                format_count(phase.warmup),
                f"{phase.flops_per_sample:.3g}",
                f"{phase.flops:.3g}",
            )
            for phase, size in zip(plan.phases, inputs, strict=True)
        ],
    )
    print(
        f"{plan.model}: {format_millions(plan.parameters)} parameters "
        f"({format_millions(plan.vision_parameters)} image, "
        f"{format_millions(plan.text_parameters)} text{decoder}); "
        f"a checkpoint of weights and AdamW moments takes {format_gib(plan.state_bytes, 2)}"
    )
    print(f"{format_count(plan.samples)} samples, {plan.steps:,} steps, {plan.flops:.3g} FLOPs in all\n")


def _print_memory(plan: Plan) -> None:
    gpu = plan.speed.gpu
    print_table(
        ("phase, GiB a GPU", *_PARTS, "needed", "fits"),
        [
            (
                phase.name,
                *(f"{getattr(phase.memory, part) / 2**30:.2f}" for part in _PARTS),
                f"{phase.memory_bytes / 2**30:.2f} of {gpu.memory / 2**30:.0f}",
                "yes" if phase.fits else "NO",
            )
            for phase in plan.phases
        ],
    )
    host = max(phase.memory.host for phase in plan.phases)
    print(
        f"host memory: {format_gib(host, 2)} a process for decoded batches, checkpoints and what is offloaded"
    )
    if plan.advice is None:
        print(f"no change of sharding makes it fit {plan.speed.gpus} x {gpu.name}; take more or larger GPUs")
    elif plan.advice:
        print(f"it would fit with {' '.join(plan.advice)}")
    print()


def _print_time(plan: Plan, job: Job) -> None:
    on = plan.speed
    basis = f"{on.mfu:.0%} of their peak (--mfu)"
    if on.images_per_second is not None:
        basis = f"the given {on.images_per_second:,.0f} images/s"
    print_table(
        ("phase", "images/s", "time", "GPU-hours", "loader cores a GPU"),
        [
            (
                phase.name,
                f"{phase.samples / phase.seconds:,.0f}",
                format_hours(phase.seconds),
                f"{phase.gpu_hours:,.0f}",
                f"{phase.loader_cores:,.1f}",
            )
            for phase in plan.phases
        ],
    )
    print(
        f"{format_hours(plan.seconds)} on {on.gpus} x {on.gpu.name} at {basis}: "
        f"{plan.gpu_hours:,.0f} GPU-hours, in {plan.segments} segment{'s' if plan.segments > 1 else ''} "
        f"of at most {job.cluster.timeout / 3600:g} h"
    )
    print(
        f"loader cores: to read as many images at {plan.images_per_core:,.0f} images/s a core "
        "(--images-per-core; measure it with `flipscale bench loader`)"
    )
