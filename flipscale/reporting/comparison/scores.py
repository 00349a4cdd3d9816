"""The sections of a comparison with the scores of all models, and with the differences between models."""

from __future__ import annotations

from flipscale.formatting import format_interval, format_percent, format_quantity
from flipscale.reporting.comparison.results import Comparison, Metric, PairedDifference, Result
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import (
    Block,
    Cell,
    Column,
    Note,
    PlotBlock,
    PlotGrid,
    Section,
    Table,
    Tone,
)
from flipscale.reporting.page.cells import count_cell, number_cell, short_count_cell

_LONGEST_LABEL = 26  # characters of a label next to a plot


def score_section(comparison: Comparison) -> Section:
    """Show the scores of all models, with what is known about the models."""
    blocks: list[Block] = [
        PlotGrid([_score_plot(comparison, metric) for metric in comparison.metrics]),
        _score_table(comparison),
    ]

    blocks += [
        Note(f"{result.model.label}: {result.model.remark}.", missing=True)
        for result in comparison.results
        if result.model.remark
    ]
    for result in comparison.results:
        skipped = result.evaluated.document["skipped"]
        if skipped:
            text = f"{result.model.label}: {format_quantity(skipped, 'image')} could not be used."
            blocks.append(Note(text, missing=True))

    return Section("Scores", blocks)


def _score_plot(comparison: Comparison, metric: Metric) -> PlotBlock:
    """Draw a point with its interval for every model, the first on top."""
    figure = plots.new_figure("share", "")
    results = comparison.results
    names = [_short_label(result.model.label, place) for place, result in enumerate(results)]

    for place, (name, result) in enumerate(zip(names, results, strict=True)):
        score = result.scores[metric]
        colour = plots.colour(place)
        plots.add_interval(figure, result.model.label, name, score.value, (score.low, score.high), colour)

    figure.update_xaxes(tickformat=".0%", showgrid=True)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[plots.label(name) for name in names[::-1]],
        nticks=0,
        showgrid=False,
        range=[-0.6, len(names) - 0.4],
    )
    height = 96 + 34 * len(names)
    return PlotBlock(metric.name, plots.to_document(figure), height=height, legend=False)


def _short_label(label: str, place: int) -> str:
    """Return a label that fits next to a plot and differs from the others."""
    return label if len(label) <= _LONGEST_LABEL else f"{place + 1}. {label[: _LONGEST_LABEL - 4]}…"


def _score_table(comparison: Comparison) -> Table:
    columns = [
        Column("model", False),
        *(Column(metric.name, hint="with the middle 95 % of the resamples") for metric in comparison.metrics),
        Column("kind", False),
        Column("architecture", False),
        Column("parameters"),
        Column("input", hint="side of the images in pixels"),
        Column("samples seen"),
        Column("batch"),
        Column("training FLOPs", hint="forward and backward, without recomputation"),
        Column("GPU-hours", hint="processes x hours by the ledger, or published"),
    ]
    rows = [_score_row(comparison, result) for result in comparison.results]
    return Table(columns, rows, "All models; a click on a heading sorts")


def _score_row(comparison: Comparison, result: Result) -> list[Cell]:
    model = result.model
    scores: list[Cell] = []
    for metric in comparison.metrics:
        score = result.scores[metric]
        best = max(other.scores[metric].value for other in comparison.results)
        text = f"{format_percent(score.value)} ({format_interval((score.low, score.high))})"
        scores.append(Cell(text, score.value, "strong" if score.value == best else ""))

    return [
        Cell(model.label, tone="strong"),
        *scores,
        Cell(model.kind),
        Cell(model.architecture),
        short_count_cell(model.parameters),
        count_cell(model.image_size),
        short_count_cell(model.samples_seen),
        count_cell(model.batch),
        number_cell(model.training_flops, ".3g"),
        number_cell(model.gpu_hours, ",.4g"),
    ]


def difference_section(comparison: Comparison) -> Section:
    """Show the paired differences of every two models."""
    if not comparison.differences:
        return Section("Differences", [Note("There is only one model.")])

    note = Note(
        "Paired: both models answer the same resampled questions, so that what is hard for both does not "
        "count. A difference is clear if its interval excludes 0."
    )
    rows = [
        [
            Cell(difference.metric.name),
            Cell(difference.ours),
            Cell(difference.theirs),
            Cell(f"{difference.value:+.1%}", difference.value, _tone(difference)),
            Cell(f"{difference.low:+.1%} to {difference.high:+.1%}", difference.low),
            Cell(_verdict(difference), tone=_tone(difference)),
        ]
        for difference in comparison.differences
    ]
    columns = [
        Column("metric", False),
        Column("model", False),
        Column("against", False),
        Column("difference"),
        Column("95 %"),
        Column("verdict", False),
    ]
    return Section("Differences", [note, Table(columns, rows)])


def _verdict(difference: PairedDifference) -> str:
    if not difference.clear:
        return "not clear"
    return "above" if difference.value > 0 else "below"


def _tone(difference: PairedDifference) -> Tone:
    if not difference.clear:
        return ""
    return "good" if difference.value > 0 else "bad"
