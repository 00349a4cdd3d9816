"""The sections of a run with its checkpoints and its unusable samples."""

from __future__ import annotations

from flipscale.formatting import format_quantity
from flipscale.reporting.page.blocks import Cell, Column, Note, Section, Table
from flipscale.reporting.page.cells import bytes_cell, count_cell, percent_cell, time_cell
from flipscale.reporting.run.facts import RunFacts
from flipscale.reporting.run.stored_files import CheckpointFacts

_MOST_KINDS = 50  # kinds of reasons that are listed


def checkpoint_section(facts: RunFacts) -> Section:
    """Show the committed checkpoints."""
    if not facts.checkpoints:
        return Section("Checkpoints", [Note("There is no committed checkpoint yet.", missing=True)])

    columns = [
        Column("checkpoint", False),
        Column("samples"),
        Column("written (UTC)"),
        Column("size"),
        Column("kept", False),
        Column("order digest", False),
    ]
    return Section("Checkpoints", [Table(columns, [_row(checkpoint) for checkpoint in facts.checkpoints])])


def _row(checkpoint: CheckpointFacts) -> list[Cell]:
    name = checkpoint.name + (" (latest)" if checkpoint.latest else "")
    return [
        Cell(name, tone="strong" if checkpoint.latest else ""),
        count_cell(checkpoint.samples),
        time_cell(checkpoint.written),
        bytes_cell(checkpoint.bytes),
        Cell("permanently" if checkpoint.permanent else "until newer ones"),
        Cell(checkpoint.digest),
    ]


def quarantine_section(facts: RunFacts) -> Section:
    """Show the samples that could not be used: their number by kind of reason, and the first of them."""
    quarantine = facts.quarantine
    if not quarantine.count:
        return Section("Unusable samples", [Note("No sample was unusable so far.")])

    kinds = Table(
        [Column("reason", False), Column("samples"), Column("share of them")],
        [
            [Cell(reason), count_cell(number), percent_cell(number / quarantine.count)]
            for reason, number in quarantine.kinds[:_MOST_KINDS]
        ],
        f"{format_quantity(quarantine.count, 'sample')} could not be used; N stands for a number",
    )

    rows = [[Cell(record.path), Cell(record.key), Cell(record.reason)] for record in quarantine.examples]
    columns = [Column(name, False) for name in ("shard", "sample", "reason")]
    examples = Table(columns, rows, f"The first {len(rows)} of them")

    return Section("Unusable samples", [kinds, examples])
