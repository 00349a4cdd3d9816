"""Scores of the set at hand against what training took: samples, FLOPs, GPU-hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flipscale.evaluation.class_sets import rooted
from flipscale.reporting.comparison.compare import Comparison, Figure, Result
from flipscale.reporting.comparison.models import flops_at, gpu_hours_at
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Note, Plot, Plots, Section
from flipscale.runs.directory import recorded_job

_AXES: tuple[tuple[str, str, Callable[[Result, int], float | None]], ...] = (
    ("samples", "samples seen", lambda result, samples: float(samples)),
    ("training FLOPs", "training FLOPs", lambda result, samples: _flops(result, samples)),
    ("GPU-hours", "GPU-hours (processes x hours)", lambda result, samples: _hours(result, samples)),
)


def cost_section(comparison: Comparison) -> Section:
    """One figure of the first classification and of the first retrieval set, over each of the costs."""
    zero_shot = [figure for figure in comparison.figures if not figure.of_retrieval]
    retrieval = [figure for figure in comparison.figures if figure.of_retrieval]
    drawn: list[Plot] = []
    for figure in (*zero_shot[:1], *retrieval[:1]):
        drawn += [plot for axis in _AXES if (plot := _plot(comparison, figure, *axis)) is not None]
    if not drawn:
        unknown = (
            "No model's samples seen are known: name runs, checkpoints, or published weights by their tag."
        )
        return Section("Scores against cost", [Note(unknown, missing=True)])
    note = Note(
        "Large points are this evaluation; curves are what the runs recorded while they trained, on the same "
        "set. Scores of this set are not ImageNet accuracies: published ones are drawn apart, below."
    )
    return Section("Scores against cost", [note, Plots(drawn)])


def _plot(
    comparison: Comparison,
    figure: Figure,
    title: str,
    axis: str,
    cost: Callable[[Result, int], float | None],
) -> Plot | None:
    plot = plots.figure(axis, "share", percent=True)
    missing: list[str] = []
    drawn = False
    for place, result in enumerate(comparison.results):
        label, shade = result.contestant.label, plots.colour(place)
        samples = result.contestant.samples_seen
        x = cost(result, samples) if samples is not None else None
        if x is None:
            missing.append(label)
            continue
        drawn = True
        curve = _curve(comparison, result, figure, cost)
        if curve:
            xs, ys = zip(*curve, strict=True)
            plots.line(plot, label, xs, ys, shade, hover="%{y:.1%} at %{x:.4s}", markers=True)
        text = [f"{label}: this evaluation"]
        plots.points(plot, label, [x], [result.values[figure].value], shade, text, hover="%{y:.1%}", size=13)
    if not drawn:
        return None
    plot.update_yaxes(rangemode="tozero")
    caption = f"Not known for {', '.join(missing)}." if missing else ""
    return Plot(f"{figure.name} against {title}", plots.document(plot), caption)


def _curve(
    comparison: Comparison, result: Result, figure: Figure, cost: Callable[[Result, int], float | None]
) -> list[tuple[float, float]]:
    """What the run recorded of the figure, where its job evaluated the same set."""
    run = result.contestant.run
    if run is None or not run.job.is_file() or not result.history:
        return []
    own, here = rooted(recorded_job(run).evaluation), comparison.sets
    kind = "retrieval" if figure.of_retrieval else "zero_shot"
    if getattr(own, kind).get(figure.set) != getattr(here, kind)[figure.set]:
        return []
    found: list[tuple[float, float]] = []
    for record in result.history:
        value, x = recorded(record, figure), cost(result, record["samples_seen"])
        if value is not None and x is not None:
            found.append((x, value))
    return found


def recorded(record: dict[str, Any], figure: Figure) -> float | None:
    """A figure in the document of an evaluation; None where it does not hold it."""
    if figure.of_retrieval:
        way, _, recall = figure.metric.rpartition("_")
        value = record.get("retrieval", {}).get(figure.set, {}).get(way, {}).get(recall)
    else:
        scores = record.get("zero_shot", {}).get(figure.set, {})
        value = scores.get(figure.metric, scores.get("value"))
    return float(value) if isinstance(value, (int, float)) else None


def _flops(result: Result, samples: int) -> float | None:
    contestant = result.contestant
    if contestant.job is not None:
        return flops_at(contestant.job.phases, contestant.shapes, samples)
    return contestant.training_flops


def _hours(result: Result, samples: int) -> float | None:
    contestant = result.contestant
    return gpu_hours_at(contestant.run, samples) if contestant.run is not None else contestant.gpu_hours
