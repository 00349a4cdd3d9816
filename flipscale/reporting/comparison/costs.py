"""The section of a comparison with scores against the cost of training: samples, FLOPs, GPU-hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from flipscale.evaluation.class_sets import rooted
from flipscale.reporting.comparison.results import Comparison, Metric, Result
from flipscale.reporting.comparison.training_cost import flops_at, gpu_hours_at
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Note, PlotBlock, PlotGrid, Section
from flipscale.runs.directory import recorded_job


@dataclass(frozen=True)
class _Cost:
    """A kind of cost, which is the x axis of a plot."""

    name: str
    axis: str
    at: Callable[[Result, int], float | None]
    """Returns the cost of a model up to a number of samples, or None if it is not known."""


def cost_section(comparison: Comparison) -> Section:
    """Show the first classification metric and the first retrieval metric over each kind of cost."""
    zero_shot = [metric for metric in comparison.metrics if not metric.of_retrieval]
    retrieval = [metric for metric in comparison.metrics if metric.of_retrieval]

    drawn = [
        plot
        for metric in (*zero_shot[:1], *retrieval[:1])
        for cost in _COSTS
        if (plot := _plot(comparison, metric, cost)) is not None
    ]
    if not drawn:
        unknown = (
            "The samples seen are not known for any model: name runs, checkpoints, or published weights by "
            "their tag."
        )
        return Section("Scores against cost", [Note(unknown, missing=True)])

    note = Note(
        "Large points are this evaluation. Curves are what the runs recorded on the same set while they "
        "trained. Scores on this set are not ImageNet accuracies: the published ones are drawn below."
    )
    return Section("Scores against cost", [note, PlotGrid(drawn)])


def _plot(comparison: Comparison, metric: Metric, cost: _Cost) -> PlotBlock | None:
    """Plot a metric over a cost, or return None if the cost is not known for any model."""
    figure = plots.new_figure(cost.axis, "share", percent=True)
    unknown: list[str] = []

    for place, result in enumerate(comparison.results):
        label = result.model.label
        colour = plots.colour(place)
        samples = result.model.samples_seen
        x = cost.at(result, samples) if samples is not None else None
        if x is None:
            unknown.append(label)
            continue

        curve = _recorded_curve(comparison, result, metric, cost)
        if curve:
            xs, ys = zip(*curve, strict=True)
            line = plots.Points(label, xs, ys, colour)
            plots.add_line(figure, line, hover="%{y:.1%} at %{x:.4s}", markers=True)

        y = result.scores[metric].value
        point = plots.Points(label, [x], [y], colour, [f"{label}: this evaluation"])
        plots.add_points(figure, point, hover="%{y:.1%}", size=13)

    if len(unknown) == len(comparison.results):
        return None

    figure.update_yaxes(rangemode="tozero")
    caption = f"Not known for {', '.join(unknown)}." if unknown else ""
    return PlotBlock(f"{metric.name} against {cost.name}", plots.to_document(figure), caption)


def _recorded_curve(
    comparison: Comparison, result: Result, metric: Metric, cost: _Cost
) -> list[tuple[float, float]]:
    """Return cost and score of the evaluations that the run recorded on the same set."""
    run = result.model.run
    if run is None or not run.job.is_file() or not result.history:
        return []

    recorded_sets = rooted(recorded_job(run).evaluation)
    if metric.of_retrieval:
        same = recorded_sets.retrieval.get(metric.set) == comparison.sets.retrieval[metric.set]
    else:
        same = recorded_sets.zero_shot.get(metric.set) == comparison.sets.zero_shot[metric.set]
    if not same:
        return []

    points: list[tuple[float, float]] = []
    for evaluation in result.history:
        score = recorded_score(evaluation.document, metric)
        x = cost.at(result, evaluation.samples_seen)
        if score is not None and x is not None:
            points.append((x, score))
    return points


def recorded_score(document: Mapping[str, object], metric: Metric) -> float | None:
    """Return the score of a metric in the document of an evaluation, or None if the document lacks it."""
    if metric.of_retrieval:
        direction, _, recall = metric.metric.rpartition("_")
        scores = _entry(_entry(_entry(document, "retrieval"), metric.set), direction)
        score = _entry(scores, recall)
    else:
        scores = _entry(_entry(document, "zero_shot"), metric.set)
        score = _entry(scores, metric.metric, _entry(scores, "value"))

    return float(score) if isinstance(score, (int, float)) else None


def _entry(document: object, key: str, default: object = None) -> object:
    """Return an entry of a document, or the default if the document has no such entry."""
    if not isinstance(document, dict):
        return default
    return cast("Mapping[str, object]", document).get(key, default)


def _flops(result: Result, samples: int) -> float | None:
    model = result.model
    if model.job is not None:
        return flops_at(model.job.phases, model.shapes, samples)
    return model.training_flops


def _gpu_hours(result: Result, samples: int) -> float | None:
    model = result.model
    return gpu_hours_at(model.run, samples) if model.run is not None else model.gpu_hours


_COSTS = (
    _Cost("samples", "samples seen", lambda result, samples: float(samples)),
    _Cost("training FLOPs", "training FLOPs", _flops),
    _Cost("GPU-hours", "GPU-hours (processes x hours)", _gpu_hours),
)
