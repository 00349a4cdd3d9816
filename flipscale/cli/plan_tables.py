"""The tables of a plan, for `flipscale plan` and `flipscale submit --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence

from flipscale.cli.console import print_table
from flipscale.config import Job
from flipscale.formatting import (
    format_count,
    format_digits,
    format_gib,
    format_hours,
    format_millions,
    format_quantity,
    pick_memory_unit,
)
from flipscale.models.packing import is_packable
from flipscale.planning.flops import CAPTION_TOKENS
from flipscale.planning.phase_plan import PhasePlan
from flipscale.planning.plan import Plan, model_shape
from flipscale.planning.sweep import Candidate
from flipscale.planning.throughput import Speed
from flipscale.terminal import say

_PARTS = ("weights", "gradients", "moments", "gathered", "activations", "loss", "batch")


def print_plan(plan: Plan, job: Job) -> None:
    """Print the budget, the memory, the steps and the time of a job."""
    print_budget(plan)
    _print_memory(plan)
    _print_steps(plan)
    _print_time(plan, job)


def print_budget(plan: Plan) -> None:
    """Print what the phases train, and the size of the model: one column per phase, for narrow terminals.

    The lines of the masked text, of the input's shape and of the cooldown appear only if a phase masks text,
    if the phases differ in their shape, or if a phase has a cooldown.
    """
    inputs = [_shape(phase) for phase in plan.phases]
    shapes_differ = len(set(inputs)) > 1
    text_masked = any(phase.text_mask_ratio for phase in plan.phases)

    cooled = any(phase.cooldown for phase in plan.phases)

    names = (
        *("samples", "steps", "batch", "masked"),
        *(("text masked",) if text_masked else ()),
        *(("image / patch",) if shapes_differ else ()),
        *("peak learning rate", "warm-up, samples"),
        *(("cooldown, samples",) if cooled else ()),
        *("FLOPs per sample", "FLOPs"),
    )
    columns = [
        (
            format_count(phase.samples),
            f"{phase.steps:,}",
            f"{phase.batch_size:,}",
            f"{phase.mask_ratio:.0%}",
            *((f"{phase.text_mask_ratio:.0%}",) if text_masked else ()),
            *((_shape(phase),) if shapes_differ else ()),
            f"{phase.peak_lr:.4g}",
            format_count(phase.warmup),
            *((format_count(phase.cooldown) if phase.cooldown else "cosine",) if cooled else ()),
            f"{phase.flops_per_sample:.3g}",
            f"{phase.flops:.3g}",
        )
        for phase in plan.phases
    ]
    _print_columns("phase", plan, names, columns)

    decoder = f", {format_millions(plan.decoder_parameters)} decoder" if plan.decoder_parameters else ""
    say(
        f"{plan.model}: {format_millions(plan.parameters)} parameters "
        f"({format_millions(plan.vision_parameters)} image, "
        f"{format_millions(plan.text_parameters)} text{decoder}); "
        f"a checkpoint of weights and AdamW moments takes {format_gib(plan.state_bytes, 2)}"
    )
    say(f"{format_count(plan.samples)} samples, {plan.steps:,} steps, {plan.flops:.3g} FLOPs in all\n")


def print_sweep(candidates: Sequence[Candidate], speed: Speed) -> None:
    """Print the best recomputation of each number of GPUs and strategy, the cheapest first."""
    best: dict[tuple[int, str, bool], Candidate] = {}
    for one in candidates:
        best.setdefault((one.gpus, one.strategy, one.reshard_after_forward), one)

    priced = candidates[0].cost is not None
    headings = ("", "GPUs", "strategy", "recomputed", "micro-batch", "GiB per GPU", "bound by", "exposed")
    rows = [
        (
            "cheapest" if one.cheapest else "" if one.fits else "does not fit",
            f"{one.gpus:,}",
            one.strategy if one.reshard_after_forward else f"{one.strategy}, no reshard",
            one.activation_checkpointing,
            "" if one.micro_batch is None else f"{one.micro_batch:,}",
            f"{one.memory_bytes / 2**30:.1f}",
            one.bound,
            f"{one.exposed:.0%}",
            format_hours(one.seconds),
            format_digits(one.gpu_hours),
            *((format_digits(one.cost),) if one.cost is not None else ()),
        )
        for one in best.values()
    ]
    print_table((*headings, "time", "GPU-hours", *(("cost",) if priced else ())), rows)
    say(
        f"on {speed.gpu.name} at {speed.mfu:.0%} of their peak (--mfu); micro-batch: only if the whole share "
        "of a process does not fit; --json has every candidate"
    )
    say(f"the cheapest: {' '.join(candidates[0].overrides)}")


def _print_columns(heading: str, plan: Plan, names: Sequence[str], columns: Sequence[Sequence[str]]) -> None:
    phases = (phase.name for phase in plan.phases)
    print_table((heading, *phases), zip(names, *columns, strict=True))


def _shape(phase: PhasePlan) -> str:
    return f"{phase.image_size} / {phase.patch_size}"


def _print_memory(plan: Plan) -> None:
    gpu = plan.speed.gpu
    unit, size = pick_memory_unit(max(phase.memory_bytes for phase in plan.phases))
    columns = [
        (
            *(f"{getattr(phase.memory, part) / size:.2f}" for part in _PARTS),
            f"{phase.memory_bytes / size:.2f}",
            f"{gpu.memory / size:,.0f}",
            "yes" if phase.fits else "NO",
        )
        for phase in plan.phases
    ]
    names = (*_PARTS, "needed", f"of a {gpu.name}", "fits")
    _print_columns(f"{unit} per GPU", plan, names, columns)

    host = max(phase.memory.host for phase in plan.phases)
    say(
        f"host memory: {format_gib(host, 2)} per process for decoded batches, checkpoints and what is "
        "offloaded"
    )
    if plan.advice:
        say(f"it would fit with {' '.join(plan.advice)}")
    say()


def _print_steps(plan: Plan) -> None:
    """Print what the time of a step is spent on; nothing if the speed is measured."""
    steps = [(phase, phase.step) for phase in plan.phases if phase.step is not None]
    if not steps:
        return

    unit, per_second = ("ms", 1e3) if max(step.total for _, step in steps) >= 1e-3 else ("µs", 1e6)
    columns = [
        (
            *(_time(seconds, per_second) for seconds in (phase.step_seconds, step.computation, step.loss)),
            *(_time(seconds, per_second) for seconds in (step.communication, step.exposed, step.input)),
            phase.bound or "",
        )
        for phase, step in steps
    ]
    names = ("step", "towers", "loss", "network", "exposed", "input", "bound by")
    _print_columns(f"{unit} per step", plan, names, columns)
    network = plan.speed.network
    say(
        f"network: {network.node_bandwidth / 1e9:g} GB/s per GPU inside nodes of {plan.speed.gpus_per_node}, "
        f"{network.fabric_bandwidth / 1e9:g} GB/s between them (network in the site file); exposed: "
        "what does not run during the towers' computation"
    )
    say()


def _time(seconds: float | None, per_second: float) -> str:
    return "" if seconds is None else format_digits(per_second * seconds)


def _print_time(plan: Plan, job: Job) -> None:
    speed = plan.speed
    columns = [
        (
            f"{phase.samples / phase.seconds:,.0f}",
            format_hours(phase.seconds),
            format_digits(phase.gpu_hours),
            f"{phase.loader_cores:,.1f}",
        )
        for phase in plan.phases
    ]
    names = ("images/s", "time", "GPU-hours", "loader cores per GPU")
    _print_columns("all of the phase", plan, names, columns)

    basis = f"{speed.mfu:.0%} of their peak (--mfu)"
    if speed.images_per_second is not None:
        basis = f"{speed.images_per_second:,.0f} images/s (--images-per-second)"
    say(
        f"{format_hours(plan.seconds)} on {speed.gpus} x {speed.gpu.name} at {basis}: "
        f"{format_digits(plan.gpu_hours)} GPU-hours, in {format_quantity(plan.segments, 'segment')} "
        f"of at most {format_hours(job.cluster.timeout)}"
    )
    if plan.cost is not None:
        say(f"cost: {format_digits(plan.cost)} (--price-per-gpu-hour)")
    text = model_shape(job).text
    if any(is_packable(text, phase.text_mask_ratio) for phase in plan.phases):
        say(
            f"captions: FLOPs and times count {min(CAPTION_TOKENS, text.context_length)} of "
            f"{text.context_length} tokens, about the "
            "mean on the web; memory counts all"
        )
    say(
        f"loader cores: to read as many images at {plan.images_per_core:,.0f} images/s per core "
        "(--images-per-core; measure it with `flipscale bench loader`)"
    )
