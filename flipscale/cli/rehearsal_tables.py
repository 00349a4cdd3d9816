"""The tables of a rehearsal."""

from __future__ import annotations

from collections.abc import Mapping

from flipscale.cli.console import print_table
from flipscale.formatting import (
    format_bytes,
    format_count,
    format_digits,
    format_gib,
    format_percent,
    format_quantity,
    pick_memory_unit,
)
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
    """Print the parts of each phase's peak, next to the plan's."""
    columns: list[tuple[str, Mapping[str, int], int]] = []
    for phase in found.phases:
        columns.append((phase.name, phase.memory, phase.peak))
        columns.append(("planned", phase.planned, phase.planned_peak))

    unit, size = pick_memory_unit(max(total for _, _, total in columns))
    rows = [
        *((part, *(f"{parts.get(part, 0) / size:.2f}" for _, parts, _ in columns)) for part in _PARTS),
        ("total", *(f"{total / size:.2f}" for _, _, total in columns)),
    ]
    print_table((f"peak, {unit} per GPU", *(name for name, _, _ in columns)), rows)

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
            format_bytes(collective.bytes),
            f"{collective.ranks // collective.ranks_per_node:,} x {collective.ranks_per_node}",
            "yes" if collective.blocking else "no",
            format_digits(1e3 * collective.seconds),
        )
        for collective in phase.collectives
    ]
    say(f"collectives of {phase.name}")
    print_table(("kind", "dtype", "calls", "each", "nodes x ranks", "waits", "ms"), rows)
    say()


def _print_time(found: Rehearsal) -> None:
    """Print one column per phase: jobs have a few phases, and the terminal may have 80 characters."""
    columns = [
        (
            f"{phase.pairs:,}",
            format_count(phase.launches),
            format_digits(phase.flops / 1e12),
            format_digits(phase.moved_bytes / 1e9),
            format_digits(1e3 * phase.time.device),
            format_digits(1e3 * phase.time.network),
            format_digits(1e3 * phase.time.exposed),
            format_digits(1e3 * phase.time.launches),
            format_digits(1e3 * phase.time.total),
            phase.time.bound_by,
            format_percent(phase.time.mfu),
        )
        for phase in found.phases
    ]
    names = (
        *("pairs", "kernels", "TFLOP", "GB moved", "device, ms", "network, ms"),
        *("network that nothing hides, ms", "launches, ms", "step at least, ms", "bound by", "MFU at most"),
    )
    print_table(("per GPU", *(phase.name for phase in found.phases)), zip(names, *columns, strict=True))
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
