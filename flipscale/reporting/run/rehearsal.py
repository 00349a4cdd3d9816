"""The section of a run with what was found when its job was rehearsed before it was submitted."""

from __future__ import annotations

from flipscale.formatting import format_bytes, format_percent, format_quantity
from flipscale.rehearsal.request import digest_of_step
from flipscale.rehearsal.results import PhaseResult, Rehearsal
from flipscale.reporting.page.blocks import Cell, Column, Note, Section, Table
from flipscale.reporting.page.cells import bytes_cell, count_cell, percent_cell
from flipscale.reporting.run.facts import RunFacts

_TITLE = "Rehearsal"


def rehearsal_sections(facts: RunFacts) -> list[Section]:
    """Show the rehearsal next to what the run itself has measured; nothing if the job was not rehearsed."""
    found = facts.rehearsal
    if found is None:
        return []
    if isinstance(found, str):
        return [Section(_TITLE, [Note(found, missing=True)])]

    table = Table(
        [
            Column("phase", False),
            Column("pairs per GPU"),
            Column("peak memory"),
            Column("planned"),
            Column("kernels"),
            Column("step at least"),
            Column("bound by", False),
            Column("MFU at most"),
            Column("waits", hint="times per step that the host waits for the device"),
        ],
        [_row(phase, sees_waits=found.sees_waits) for phase in found.phases],
        f"One step of each phase as rank {found.rank} of {found.gpus} x {found.gpu}, without a GPU; the "
        "times are a model.",
    )
    return [Section(_TITLE, [table, *_notes(facts, found)])]


def _row(phase: PhaseResult, *, sees_waits: bool) -> list[Cell]:
    waits = sum(phase.problems.values())
    return [
        Cell(phase.name),
        count_cell(phase.pairs),
        bytes_cell(phase.peak),
        bytes_cell(phase.planned_peak),
        count_cell(phase.launches),
        Cell(f"{1e3 * phase.time.total:.1f} ms", phase.time.total),
        Cell(phase.time.bound_by),
        percent_cell(phase.time.mfu),
        Cell(str(waits) if sees_waits else "not seen", waits, tone="bad" if waits else ""),
    ]


def _notes(facts: RunFacts, found: Rehearsal) -> list[Note]:
    notes: list[Note] = []
    if found.step_digest != digest_of_step(facts.job):
        text = f"The run's job is not the one that was rehearsed, {found.job}: its steps differ."
        notes.append(Note(text))
    if measured := _measured(facts):
        notes.append(Note(f"The run itself, in its last log line: {measured}."))
    if found.compiled is not None:
        compiled = found.compiled
        notes.append(
            Note(
                f"Compiled: {format_quantity(compiled.graphs, 'graph')}, "
                f"{format_quantity(compiled.breaks, 'graph break')}, "
                f"{format_quantity(compiled.uncompiled, 'call')} that torch could not compile."
            )
        )
    notes += [Note(f"Not looked at: {limit}.") for limit in found.limits]
    return notes


def _measured(facts: RunFacts) -> str:
    """Return the memory and MFU that the run measured, or an empty text: a CPU has neither."""
    memory, mfu = facts.series.last("peak_memory_gb"), facts.series.last("mfu")
    parts = [f"peak memory {format_bytes(int(memory * 1e9))}"] if memory else []
    parts += [f"MFU {format_percent(mfu)}"] if mfu else []
    return ", ".join(parts)
