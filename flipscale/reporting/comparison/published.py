"""The sections with published numbers: models on ImageNet, and the tables of the FLIP paper.

The models of the page are drawn among the published ones only if they were scored on ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flipscale.reporting.comparison.models import ComparedModel
from flipscale.reporting.comparison.reference import PublishedModel, paper_tables, published_models
from flipscale.reporting.comparison.results import Comparison, Result
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Block, Cell, Column, Note, PlotBlock, PlotGrid, Section, Table
from flipscale.reporting.page.cells import (
    NONE,
    count_cell,
    number_cell,
    percent_cell,
    short_count_cell,
)


@dataclass(frozen=True)
class _Cost:
    """A kind of cost, which is the x axis of a plot."""

    name: str
    ticks: int | str
    """Plotly's `dtick` of the logarithmic axis."""
    of: Callable[[PublishedModel | ComparedModel], float | None]


_COSTS = (
    # Few powers of ten are between 1 and 40 billion samples: the axis also marks 2 and 5 times each.
    _Cost("samples seen", "D2", lambda model: model.samples_seen),
    _Cost("training FLOPs", 1, lambda model: model.training_flops),
    _Cost("GPU-hours", 1, lambda model: model.gpu_hours),
)
_POINTS = {  # families that are drawn as points: (colour, symbol)
    "CLIP": ("#7d8690", "diamond"),
    "OpenCLIP": ("#3b7dd8", "circle"),
    "DataComp": ("#c29a1c", "square"),
    "CLIP reproduction": ("#b0569f", "x"),
    "FLIP": ("#2f9e6e", "star"),
}
_CURVES = "OpenCLIP scaling"  # the family that is drawn as curves
_IMAGENET_IMAGES = 50_000
_IMAGENET_CLASSES = 1000


def imagenet_set(comparison: Comparison) -> str | None:
    """Return the name of the set that is ImageNet's validation set, or None if there is none.

    The set is known by its class names and its number of images: ImageNet-V2 has the same class names.
    """
    for name, chosen in comparison.sets.zero_shot.items():
        scores = comparison.results[0].evaluated.document["zero_shot"][name]
        images = scores["samples"] + scores["skipped"]
        if (
            chosen.classnames == "imagenet"
            and chosen.subset is None
            and (scores["classes"], images) == (_IMAGENET_CLASSES, _IMAGENET_IMAGES)
        ):
            return name
    return None


def published_section(comparison: Comparison) -> Section:
    """Show published ImageNet accuracies against samples, FLOPs and GPU-hours, and as a table."""
    imagenet = imagenet_set(comparison)

    text = (
        "ImageNet top-1 as published. Lines join OpenCLIP's runs of one shape on one data set that saw 3, 13 "
        "and 34 billion samples, so that equal samples can be compared. "
    )
    if imagenet is None:
        text += (
            "The models of this page were not scored on ImageNet's validation set (50,000 images with "
            "`--classnames imagenet`), so they are not drawn here."
        )
    else:
        text += f"The large points are the models of this page, scored on {imagenet}."

    drawn = [_plot(comparison, imagenet, cost) for cost in _COSTS]
    blocks: list[Block] = [Note(text), PlotGrid(drawn), _model_table()]
    return Section("Published models", blocks)


def _plot(comparison: Comparison, imagenet: str | None, cost: _Cost) -> PlotBlock:
    figure = plots.new_figure(cost.name, "ImageNet top-1", log_x=cost.ticks, percent=True)
    models = [model for model in published_models() if cost.of(model) and model.imagenet_top1 is not None]

    _add_curves(figure, [model for model in models if model.family == _CURVES], cost)
    for family, (colour, symbol) in _POINTS.items():
        members = [model for model in models if model.family == family]
        if members:
            texts = [f"{model.model} {model.weights} ({model.data})" for model in members]
            points = _points(family, members, cost, colour, texts)
            plots.add_points(figure, points, hover="%{y:.1%} at %{x:.3g}", symbol=symbol)

    if imagenet is not None:
        _add_compared(figure, comparison.results, imagenet, cost)
    return PlotBlock(f"ImageNet top-1 against {cost.name}", plots.to_document(figure), height=400)


def _add_curves(figure: plots.Figure, models: Sequence[PublishedModel], cost: _Cost) -> None:
    """Join the models of one shape on one data set."""
    curves: dict[tuple[str, str], list[PublishedModel]] = {}
    for model in models:
        curves.setdefault((model.model, model.data), []).append(model)

    for number, ((shape, data), members) in enumerate(curves.items()):
        members = sorted(members, key=lambda model: model.samples_seen)
        texts = [f"{shape}, {data}, {model.samples_seen / 1e9:.1f}B samples" for model in members]
        points = _points("OpenCLIP, equal recipes", members, cost, plots.PUBLISHED, texts)
        plots.add_grouped_curve(
            figure,
            points,
            dash="dot" if data == "LAION-400M" else "solid",
            legend=number == 0,
            mark=shape.removeprefix("ViT-") if data == "LAION-2B" and len(members) > 1 else "",
        )


def _points(
    name: str, models: Sequence[PublishedModel], cost: _Cost, colour: str, texts: Sequence[str]
) -> plots.Points:
    return plots.Points(
        name,
        [cost.of(model) or 0.0 for model in models],
        [model.imagenet_top1 or 0.0 for model in models],
        colour,
        texts,
    )


def _add_compared(figure: plots.Figure, results: Sequence[Result], imagenet: str, cost: _Cost) -> None:
    """Draw the models of the page whose own training explains their scores."""
    for place, result in enumerate(results):
        x = cost.of(result.model)
        top1 = result.evaluated.document["zero_shot"][imagenet]["top1"]
        if x and top1 is not None and not result.model.from_weights:
            label = result.model.label
            points = plots.Points(label, [x], [top1], plots.colour(place + 4), [label])
            plots.add_points(figure, points, hover="%{y:.1%}", size=15)


def _model_table() -> Table:
    columns = [
        *(Column(name, False) for name in ("family", "model", "data")),
        Column("ImageNet"),
        *(Column(name) for name in ("samples seen", "batch", "parameters", "training FLOPs", "GPU-hours")),
        Column("ImageNet-V2"),
        *(
            Column(name)
            for name in ("Flickr image R@1", "Flickr text R@1", "COCO image R@1", "COCO text R@1")
        ),
        *(Column(name, False) for name in ("weights", "source")),
    ]
    models = sorted(published_models(), key=lambda model: -(model.imagenet_top1 or 0.0))
    caption = (
        "Each row names its source; a click on a heading sorts. Training FLOPs: for OpenCLIP's models, "
        "3 x forward x samples; for the FLIP paper's, as `flipscale plan` counts them, with the unmasked "
        "tuning of 128M samples. GPU-hours of the scaling runs: samples / speed, as listed there."
    )
    return Table(columns, [_model_row(model) for model in models], caption)


def _model_row(model: PublishedModel) -> list[Cell]:
    return [
        Cell(model.family),
        Cell(model.model),
        Cell(model.data),
        percent_cell(model.imagenet_top1),
        short_count_cell(model.samples_seen),
        count_cell(model.batch),
        short_count_cell(model.parameters_m * 1e6),
        number_cell(model.training_flops, ".3g"),
        count_cell(model.gpu_hours),
        percent_cell(model.imagenet_v2_top1),
        percent_cell(model.flickr_image_r1),
        percent_cell(model.flickr_text_r1),
        percent_cell(model.coco_image_r1),
        percent_cell(model.coco_text_r1),
        Cell(model.weights) if model.weights else NONE,
        Cell(model.source),
    ]


def paper_section() -> Section:
    """Show the FLIP paper's tables that our runs and `jobs/` correspond to."""
    tables = [
        Table(
            [Column(f"table {table.number}", False), *map(Column, table.columns)],
            [[Cell(row[0]), *(_paper_cell(text) for text in row[1:])] for row in table.rows],
            f"Table {table.number}: {table.title}",
        )
        for table in paper_tables()
    ]
    note = Note("As printed in the FLIP paper (arXiv 2212.00794); accuracies in %.")
    return Section("The paper's tables", [note, *tables])


def _paper_cell(text: str) -> Cell:
    """Return a cell that is sorted by its number, if it is one."""
    try:
        return Cell(text, float(text)) if text else NONE
    except ValueError:
        return Cell(text)
