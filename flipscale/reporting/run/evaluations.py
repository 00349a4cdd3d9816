"""The section of a run with the evaluations that it recorded while it trained."""

from __future__ import annotations

from collections.abc import Sequence

from flipscale.evaluation.scores import Score, scores_of
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Block, Cell, Column, Note, PlotBlock, PlotGrid, Section, Table
from flipscale.reporting.page.cells import count_cell, percent_cell
from flipscale.reporting.run.facts import RunFacts
from flipscale.runs.evaluations import RecordedEvaluation

_MOST_FAILURES = 3  # newest failed evaluations that are named


def evaluation_section(facts: RunFacts) -> Section:
    """Show the scores over the samples seen, and the newest scores as a table."""
    blocks: list[Block] = [
        Note(
            f"The evaluation at {evaluation.samples_seen:,} samples failed: {evaluation.error}", missing=True
        )
        for evaluation in facts.failed_evaluations[-_MOST_FAILURES:]
    ]

    if not facts.evaluations:
        return Section("Evaluations", [*blocks, _no_evaluations(facts)])

    scores = [score for evaluation in facts.evaluations for score in scores_of(evaluation.document)]
    kinds = (("Zero-shot accuracy", "zero_shot"), ("Retrieval", "retrieval"))
    drawn = [_plot(title, [score for score in scores if score.kind == kind]) for title, kind in kinds]
    blocks.append(PlotGrid([plot for plot in drawn if plot is not None]))

    blocks.append(_newest_table(facts.evaluations[-1]))
    return Section("Evaluations", blocks)


def _no_evaluations(facts: RunFacts) -> Note:
    if facts.job.evaluation.every:
        text = "No evaluation was recorded yet; the first comes after evaluation.every."
    else:
        text = "No evaluation was recorded: set evaluation.every in the job, or use `flipscale eval`."
    return Note(text, missing=True)


def _plot(title: str, scores: Sequence[Score]) -> PlotBlock | None:
    """Draw the leading scores of each set over the samples seen, or return None if there are none."""
    curves: dict[str, list[Score]] = {}
    for score in scores:
        if score.leading:
            curves.setdefault(f"{score.set}, {score.measure}", []).append(score)
    if not curves:
        return None

    figure = plots.new_figure("samples seen", "share", percent=True)
    for number, (name, members) in enumerate(curves.items()):
        points = plots.Points(
            name,
            [score.samples or 0 for score in members],
            [score.value for score in members],
            plots.colour(number),
        )
        plots.add_line(figure, points, hover="%{y:.1%} at %{x:,} samples", markers=True)

    figure.update_yaxes(rangemode="tozero")
    return PlotBlock(title, plots.to_document(figure))


def _newest_table(newest: RecordedEvaluation) -> Table:
    rows = [
        [
            Cell(score.set),
            Cell(score.measure),
            percent_cell(score.value),
            percent_cell(score.chance),
            count_cell(score.images),
        ]
        for score in scores_of(newest.document)
    ]
    columns = [
        Column("set", False),
        Column("measure", False),
        Column("score"),
        Column("chance"),
        Column("images"),
    ]
    return Table(columns, rows, f"The newest evaluation, at {newest.samples_seen:,} samples")
