"""What others published, beside our models where these were scored on ImageNet; and the paper's tables."""

from __future__ import annotations

from flipscale.reporting.comparison.compare import Comparison, Result
from flipscale.reporting.comparison.reference import PublishedModel, paper_tables, published_models
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Block, Cell, Column, Note, Plot, Plots, Section, Table
from flipscale.reporting.page.cells import NONE, count, real, share, short

_AXES = (
    ("samples seen", "samples_seen"),
    ("training FLOPs", "training_flops"),
    ("GPU-hours", "gpu_hours"),
)
_POINTS = {  # families that are drawn as points: (colour, symbol)
    "CLIP": ("#7d8690", "diamond"),
    "OpenCLIP": ("#3b7dd8", "circle"),
    "DataComp": ("#c29a1c", "square"),
    "CLIP reproduction": ("#b0569f", "x"),
    "FLIP": ("#2f9e6e", "star"),
}
_CURVES = "OpenCLIP scaling"
_IMAGENET_IMAGES, _IMAGENET_CLASSES = 50_000, 1000


def imagenet_set(comparison: Comparison) -> str | None:
    """The name of the set that is ImageNet's validation set, by its class names and its number of images."""
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
    """ImageNet accuracy against samples, FLOPs and GPU-hours, as published, and the table of it."""
    own = imagenet_set(comparison)
    text = (
        "ImageNet top-1 as published. Lines join OpenCLIP's runs of one shape on one data set that saw 3, 13 "
        "and 34 billion samples, so that equal samples can be compared. "
    )
    if own is None:
        text += (
            "The models of this page were not scored on ImageNet's validation set (50,000 images with "
            "`--classnames imagenet`), so they are not drawn here."
        )
    else:
        text += f"The large points are the models of this page, scored on {own}."
    drawn = [_plot(comparison, own, title, name) for title, name in _AXES]
    blocks: list[Block] = [Note(text), Plots(drawn), _table()]
    return Section("Published models", blocks)


def _plot(comparison: Comparison, own: str | None, title: str, name: str) -> Plot:
    ticks = "D2" if name == "samples_seen" else 1  # few powers of ten lie between 1 and 40 billion
    plot = plots.figure(title, "ImageNet top-1", log_x=ticks, percent=True)
    known = [m for m in published_models() if getattr(m, name) and m.imagenet_top1 is not None]
    curves: dict[tuple[str, str], list[PublishedModel]] = {}
    for model in known:
        if model.family == _CURVES:
            curves.setdefault((model.model, model.data), []).append(model)
    first = True
    for (shape, data), models in curves.items():
        models = sorted(models, key=lambda model: model.samples_seen)
        texts = [f"{shape}, {data}, {m.samples_seen / 1e9:.1f}B samples" for m in models]
        plots.curve(
            plot,
            "OpenCLIP, equal recipes",
            [getattr(m, name) for m in models],
            [m.imagenet_top1 or 0.0 for m in models],
            plots.PUBLISHED,
            texts,
            dash="dot" if data == "LAION-400M" else "solid",
            legend=first,
            mark=shape.removeprefix("ViT-") if data == "LAION-2B" and len(models) > 1 else "",
        )
        first = False
    for family, (shade, symbol) in _POINTS.items():
        models = [model for model in known if model.family == family]
        if models:
            plots.points(
                plot,
                family,
                [getattr(m, name) for m in models],
                [m.imagenet_top1 or 0.0 for m in models],
                shade,
                [f"{m.model} {m.weights} ({m.data})" for m in models],
                hover="%{y:.1%} at %{x:.3g}",
                symbol=symbol,
            )
    if own is not None:
        _add_own(plot, comparison.results, own, name)
    return Plot(f"ImageNet top-1 against {title}", plots.document(plot), height=400)


def _add_own(plot: plots.Plot, results: list[Result], own: str, name: str) -> None:
    for place, result in enumerate(results):
        x = getattr(result.contestant, name)
        top1 = result.evaluated.document["zero_shot"][own]["top1"]
        if x and top1 is not None and not result.contestant.from_weights:
            label = result.contestant.label
            plots.points(
                plot, label, [x], [top1], plots.colour(place + 4), [label], hover="%{y:.1%}", size=15
            )


def _table() -> Table:
    columns = [
        Column("family", False),
        Column("model", False),
        Column("data", False),
        Column("ImageNet"),
        *map(Column, ("samples seen", "batch", "parameters", "training FLOPs", "GPU-hours")),
        *map(
            Column, ("ImageNet-V2", "Flickr image R@1", "Flickr text R@1", "COCO image R@1", "COCO text R@1")
        ),
        Column("weights", False),
        Column("source", False),
    ]
    rows = [
        [
            Cell(m.family),
            Cell(m.model),
            Cell(m.data),
            share(m.imagenet_top1),
            short(m.samples_seen),
            count(m.batch),
            short(m.parameters_m * 1e6),
            real(m.training_flops, ".3g"),
            count(m.gpu_hours),
            share(m.imagenet_v2_top1),
            share(m.flickr_image_r1),
            share(m.flickr_text_r1),
            share(m.coco_image_r1),
            share(m.coco_text_r1),
            Cell(m.weights) if m.weights else NONE,
            Cell(m.source),
        ]
        for m in sorted(published_models(), key=lambda model: -(model.imagenet_top1 or 0.0))
    ]
    caption = (
        "Each row names its source; a click on a heading sorts. Training FLOPs: 3 x forward x samples for "
        "OpenCLIP; for the FLIP paper's as `flipscale plan` counts them, unmasked tuning of 128M samples "
        "included. GPU-hours of the scaling runs: samples / speed, as listed there."
    )
    return Table(columns, rows, caption)


def paper_section() -> Section:
    """The FLIP paper's tables that our runs and `jobs/` correspond to."""
    tables = [
        Table(
            [Column(f"table {table.number}", False), *map(Column, table.columns)],
            [[Cell(row[0]), *(_cell(text) for text in row[1:])] for row in table.rows],
            f"Table {table.number}: {table.title}",
        )
        for table in paper_tables()
    ]
    note = Note("As printed in the FLIP paper (arXiv 2212.00794); accuracies in %.")
    return Section("The paper's tables", [note, *tables])


def _cell(text: str) -> Cell:
    try:
        return Cell(text, float(text)) if text else NONE
    except ValueError:
        return Cell(text)
