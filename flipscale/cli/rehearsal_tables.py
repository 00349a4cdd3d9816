"""The tables of a rehearsal."""

from __future__ import annotations

from flipscale.cli.console import print_table
from flipscale.formatting import format_count, format_gib, format_percent, format_quantity
from flipscale.rehearsal.results import PhaseResult, Rehearsal
from flipscale.terminal import say

_PARTS = ("weights", "gradients", "moments", "gathered", "activations", "loss", "batch")


def print_rehearsal(found: Rehearsal) -> None:
    """Print what a rehearsal found: memory, collectives, the time's bound, and what is wrong."""
    say(f"rank {found.rank} of {found.gpus} x {found.gpu}, one step of each phase on fake tensors\n")
    _print_memory(found)
    for phase in found.phases:
        _print_collectives(phase)
    _print_time(found)
    _print_problems(found)


def _print_memory(found: Rehearsal) -> None:
    rows: list[tuple[str, ...]] = []
    for phase in found.phases:
        for what, parts, total in (
            (phase.name, phase.memory, phase.peak),
            ("  as planned", phase.planned, phase.planned_peak),
        ):
            cells = (f"{parts.get(part, 0) / 2**30:.2f}" for part in _PARTS)
            rows.append((what, *cells, f"{total / 2**30:.2f}"))
    print_table(("peak, GiB per GPU", *_PARTS, "total"), rows)

    for phase in found.phases:
        if not phase.fits:
            needed = f"{format_gib(phase.peak)} and what torch and NCCL need"
            say(f"{phase.name}: {needed} do not fit a {found.gpu}")
    say()


def _print_collectives(phase: PhaseResult) -> None:
    if not phase.collectives:
        return
    rows = [
        (
            collective.kind,
            collective.dtype,
            f"{collective.count:,}",
            f"{collective.bytes / 2**20:,.2f}",
            f"{collective.ranks} ({collective.ranks_per_node} per node)",
            "yes" if collective.blocking else "no",
            f"{1e3 * collective.seconds:.2f}",
        )
        for collective in phase.collectives
    ]
    print_table(
        (f"collectives of {phase.name}", "dtype", "calls", "MiB each", "ranks", "waited for", "ms in all"),
        rows,
    )
    say()


def _print_time(found: Rehearsal) -> None:
    rows = [
        (
            phase.name,
            f"{phase.pairs:,}",
            format_count(phase.launches),
            f"{phase.flops / 1e12:.1f}",
            f"{phase.moved_bytes / 1e9:,.0f}",
            f"{1e3 * phase.time.device:.1f}",
            f"{1e3 * phase.time.network:.1f}",
            f"{1e3 * phase.time.exposed:.1f}",
            f"{1e3 * phase.time.launches:.1f}",
            f"{1e3 * phase.time.total:.1f}",
            phase.time.bound_by,
            format_percent(phase.time.mfu),
        )
        for phase in found.phases
    ]
    print_table(
        (
            *("phase, per GPU", "pairs", "kernels", "TFLOP", "GB moved", "device ms", "network ms"),
            *("exposed ms", "launch ms", "step at least, ms", "bound by", "MFU at most"),
        ),
        rows,
    )
    say("the times are a model, not a measurement; docs/rehearsal.md states its assumptions")


def _print_problems(found: Rehearsal) -> None:
    for phase in found.phases:
        for what, count in phase.problems.items():
            say(f"{phase.name}: {what}, {format_quantity(count, 'time')} a step")
    if found.sees_waits and not found.problems:
        say("the host never waits for the device, and no operator mixes devices")

    if found.compiled is not None:
        compiled = found.compiled
        say(
            f"compiled: {format_quantity(compiled.graphs, 'graph')}, "
            f"{format_quantity(compiled.breaks, 'graph break')}, "
            f"{format_quantity(compiled.uncompiled, 'call')} that torch could not compile"
        )
    for limit in found.limits:
        say(f"not looked at: {limit}")
