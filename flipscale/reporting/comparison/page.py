"""`flipscale compare`: the page of several models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

import flipscale
from flipscale.evaluation.class_sets import class_set
from flipscale.formatting import format_interval, format_percent, format_quantity
from flipscale.models.masking import visible_patches
from flipscale.reporting.comparison.compare import Comparison, Figure, Paired, Result, class_changes
from flipscale.reporting.comparison.models import Contestant
from flipscale.reporting.comparison.published import paper_section, published_section
from flipscale.reporting.comparison.training_cost import cost_section
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import (
    Block,
    Card,
    Cell,
    Column,
    Gallery,
    Headline,
    Line,
    Note,
    Page,
    Picture,
    Plot,
    Plots,
    Section,
    Table,
)
from flipscale.reporting.page.cells import count, real, share, short
from flipscale.reporting.page.pictures import Pixels, picture, without_hidden

_CLASSES_SHOWN = 5  # at each end
_LEAST_IMAGES = 5  # of a class that is shown
_LABEL = 26  # characters of a name beside a plot


def compare_page(comparison: Comparison) -> Page:
    """The page of a comparison."""
    results = comparison.results
    return Page(
        title=" · ".join(result.contestant.label for result in results[:4])
        + (f" and {len(results) - 4} more" if len(results) > 4 else ""),
        subtitle=(
            f"{format_quantity(len(results), 'model')}, evaluated on the same data by the same code "
            f"(flipscale {flipscale.__version__}). Intervals hold the middle 95 % of 1,000 bootstrap "
            "resamples of the images; differences are taken on the same resamples."
        ),
        headlines=_headlines(comparison),
        sections=[
            _score_section(comparison),
            _difference_section(comparison),
            cost_section(comparison),
            _class_section(comparison),
            _example_section(comparison),
            published_section(comparison),
            paper_section(),
        ],
    )


def compare_document(comparison: Comparison) -> dict[str, Any]:
    """What was found, for programs."""
    return {
        "flipscale": flipscale.__version__,
        "sets": comparison.sets.model_dump(mode="json", exclude_none=True),
        "models": [
            {
                **_known(result.contestant),
                "scores": [
                    {"set": figure.set, "metric": figure.metric, **asdict(value)}
                    for figure, value in result.values.items()
                ],
                "document": result.evaluated.document,
                "examples": [asdict(found) for found in result.neighbours],
            }
            for result in comparison.results
        ],
        "differences": [
            {
                "set": d.figure.set,
                "metric": d.figure.metric,
                "ours": d.ours,
                "theirs": d.theirs,
                "value": d.value,
                "low": d.low,
                "high": d.high,
                "clear": d.clear,
            }
            for d in comparison.differences
        ],
    }


def _known(contestant: Contestant) -> dict[str, Any]:
    names = ("label", "source", "kind", "architecture", "parameters", "image_size", "samples_seen", "batch")
    names += ("training_flops", "gpu_hours", "remark")
    return {name: getattr(contestant, name) for name in names}


def _headlines(comparison: Comparison) -> list[Headline]:
    lines: list[Headline] = []
    for figure in comparison.figures[:6]:
        best = max(comparison.results, key=lambda result: result.values[figure].value)
        lines.append(
            Headline(format_percent(best.values[figure].value), f"best {figure.name}", best.contestant.label)
        )
    return lines


def _score_section(comparison: Comparison) -> Section:
    columns = [
        Column("model", False),
        *(Column(figure.name, hint="with the middle 95 % of the resamples") for figure in comparison.figures),
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
    blocks: list[Block] = [
        Plots([_score_plot(comparison, figure) for figure in comparison.figures]),
        Table(columns, rows, "All models; a click on a heading sorts"),
    ]
    blocks += [
        Note(f"{result.contestant.label}: {result.contestant.remark}.", missing=True)
        for result in comparison.results
        if result.contestant.remark
    ]
    for result in comparison.results:
        if result.evaluated.document["skipped"]:
            number = format_quantity(result.evaluated.document["skipped"], "image")
            blocks.append(Note(f"{result.contestant.label}: {number} could not be used.", missing=True))
    return Section("Scores", blocks)


def _score_row(comparison: Comparison, result: Result) -> list[Cell]:
    c = result.contestant
    row = [Cell(c.label, tone="strong")]
    for figure in comparison.figures:
        value = result.values[figure]
        best = max(other.values[figure].value for other in comparison.results)
        text = f"{format_percent(value.value)} ({format_interval((value.low, value.high))})"
        row.append(Cell(text, value.value, "strong" if value.value == best else ""))
    return [
        *row,
        Cell(c.kind),
        Cell(c.architecture),
        short(c.parameters),
        count(c.image_size),
        short(c.samples_seen),
        count(c.batch),
        real(c.training_flops, ".3g"),
        real(c.gpu_hours, ",.4g"),
    ]


def _score_plot(comparison: Comparison, figure: Figure) -> Plot:
    """A point with its interval for every model, the first on top."""
    plot = plots.figure("share", "")
    results = comparison.results
    names = [_short_label(result.contestant.label, place) for place, result in enumerate(results)]
    for place, (name, result) in enumerate(zip(names, results, strict=True)):
        value = result.values[figure]
        plots.interval(
            plot,
            result.contestant.label,
            value.value,
            name,
            (value.low, value.high),
            plots.colour(place),
            hover=f"%{{x:.1%}} ({format_interval((value.low, value.high))})",
        )
    plot.update_xaxes(tickformat=".0%", showgrid=True)
    plot.update_yaxes(
        type="category", categoryorder="array", categoryarray=[plots.label(n) for n in names[::-1]]
    )
    plot.update_yaxes(nticks=0, showgrid=False, range=[-0.6, len(names) - 0.4])
    return Plot(figure.name, plots.document(plot), height=96 + 34 * len(names), legend=False)


def _short_label(label: str, place: int) -> str:
    """A name that fits beside a plot and is no other's."""
    return label if len(label) <= _LABEL else f"{place + 1}. {label[: _LABEL - 4]}…"


def _difference_section(comparison: Comparison) -> Section:
    if not comparison.differences:
        return Section("Differences", [Note("There is one model only.")])
    note = Note(
        "Paired: both models answer the same resampled questions, so that what is hard for both does not "
        "count. A difference is clear where its interval leaves out 0."
    )
    rows = [
        [
            Cell(d.figure.name),
            Cell(d.ours),
            Cell(d.theirs),
            Cell(f"{d.value:+.1%}", d.value, _sign(d)),
            Cell(f"{d.low:+.1%} to {d.high:+.1%}", d.low),
            Cell(("above" if d.value > 0 else "below") if d.clear else "not clear", tone=_sign(d)),
        ]
        for d in comparison.differences
    ]
    columns = [
        Column("figure", False),
        Column("model", False),
        Column("against", False),
        Column("difference"),
        Column("95 %"),
        Column("verdict", False),
    ]
    return Section("Differences", [note, Table(columns, rows)])


def _sign(paired: Paired) -> str:
    return ("good" if paired.value > 0 else "bad") if paired.clear else ""


def _class_section(comparison: Comparison) -> Section:
    """Where the second model and the later ones gain and lose most against the first."""
    first, *others = comparison.results
    blocks: list[Block] = []
    for name, chosen in comparison.sets.zero_shot.items():
        names = class_set(chosen).names
        for other in others:
            changes = class_changes(other, first, name, _LEAST_IMAGES)
            ends = [*changes[:_CLASSES_SHOWN], *changes[_CLASSES_SHOWN:][-_CLASSES_SHOWN:]]
            if not ends:
                continue
            rows = [
                [
                    Cell(names[number]),
                    share(ours),
                    share(theirs),
                    Cell(f"{ours - theirs:+.1%}", ours - theirs, "good" if ours > theirs else "bad"),
                    count(images),
                ]
                for number, ours, theirs, images in ends
                if ours != theirs
            ]
            columns = [Column("class", False), Column(other.contestant.label), Column(first.contestant.label)]
            caption = f"{name}: {other.contestant.label} against {first.contestant.label}"
            blocks.append(Table([*columns, Column("change"), Column("images")], rows, caption))
    if not blocks:
        few = f"There is no classification set with {_LEAST_IMAGES} images or more of a class."
        return Section("Classes", [Note(few, missing=True)])
    note = Note(
        f"The largest gains and losses in top-1, of classes with at least {_LEAST_IMAGES} images. Single "
        "classes have few images: most of this is chance."
    )
    return Section("Classes", [note, *blocks])


def _example_section(comparison: Comparison) -> Section:
    if isinstance(comparison.examples, str):
        reason = f"No examples can be shown: {comparison.examples}."
        return Section("Examples", [Note(reason, missing=True)])
    cards: list[Card] = []
    for place, example in enumerate(comparison.examples):
        lines: list[Line] = []
        for result in comparison.results:
            if place >= len(result.neighbours):
                continue
            found = result.neighbours[place]
            lines.append(
                Line(f"{result.contestant.label}: own caption ranks {found.rank} of {found.pool}", "strong")
            )
            lines += [
                Line(f"{near.similarity:.2f}  {near.caption}", "good" if near.own else "")
                for near in found.nearest
            ]
        pictures = [picture(example.pixels, "whole"), *_masked(comparison, example.pixels, place)]
        cards.append(Card(pictures, " / ".join(example.captions[:2]), lines))
    note = Note(
        "Validation images, the nearest captions by each model (cosine similarity, an image's own captions "
        "green), and the image under a mask as each run trained with; evaluation itself shows whole images."
    )
    return Section("Examples", [note, Gallery(cards)])


def _masked(comparison: Comparison, pixels: Pixels, place: int) -> list[Picture]:
    """The image under the strongest mask of each run's job; equal masks once."""
    drawn: dict[tuple[int, float, int], Picture] = {}
    for result in comparison.results:
        job, spec = result.contestant.job, result.contestant.spec
        ratio = max((phase.mask_ratio for phase in job.phases), default=0.0) if job is not None else 0.0
        if job is None or spec is None or ratio == 0.0:
            continue
        key = (spec.vision.grid, ratio, job.seed)
        keep = visible_patches(torch.tensor([place]), spec.vision.patches, ratio, job.seed)
        if keep is not None and key not in drawn:
            hidden = without_hidden(pixels, keep[0].tolist(), spec.vision.grid)
            drawn[key] = picture(hidden, f"{ratio:.0%} hidden ({result.contestant.label})")
    return list(drawn.values())[:2]
