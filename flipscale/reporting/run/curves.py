"""The sections of a run with the curves of its log lines, by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flipscale.formatting import format_percent
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Block, Note, PlotBlock, PlotGrid, Section
from flipscale.reporting.run.facts import RunFacts
from flipscale.reporting.run.series import BUCKETS

Marks = Sequence[tuple[float, str]]
"""Vertical lines: samples seen, and colour."""


@dataclass(frozen=True)
class _Curve:
    """A column of the metrics, and how it is drawn."""

    column: str
    title: str
    unit: str
    log_y: bool = False
    percent: bool = False
    from_zero: bool = False


_TRAINING = (
    _Curve("loss", "Loss", "loss"),
    _Curve("lr", "Learning rate", "learning rate"),
    _Curve("grad_norm", "Gradient norm", "norm", log_y=True),
    _Curve("logit_scale", "Logit scale", "scale"),
)
_SPEED = (
    _Curve("images_per_second", "Throughput", "images/s", from_zero=True),
    _Curve("data_wait_fraction", "Waiting for data", "share of the time", percent=True, from_zero=True),
)
_OPERATIONS = (
    _Curve("mfu", "Model operations", "share of the GPU's peak", percent=True, from_zero=True),
    _Curve("tflops", "Model operations", "TFLOP/s of a process", from_zero=True),
)
"""The first that the run records is shown."""


def training_section(facts: RunFacts, marks: Marks) -> Section:
    """Show loss, learning rate, gradient norm and logit scale.

    Args:
        facts: The run.
        marks: The ends of its segments.
    """
    if not len(facts.series):
        return Section("Training", [_no_metrics(facts)])

    blocks: list[Block] = [
        Note(_explanation(facts)),
        PlotGrid([_plot(facts, curve, marks) for curve in _TRAINING]),
    ]

    skipped = facts.series.values["skipped_steps"]
    most = int(np.nanmax(skipped)) if np.isfinite(skipped).any() else 0
    if most:
        blocks.append(Note(f"{most:,} steps changed nothing, since their loss or gradient was not finite."))

    return Section("Training", blocks)


def speed_section(facts: RunFacts, marks: Marks) -> Section:
    """Show the throughput, the wait for data, and the model operations.

    Args:
        facts: The run.
        marks: The ends of its segments.
    """
    if not len(facts.series):
        return Section("Speed", [_no_metrics(facts)])

    operations = [curve for curve in _OPERATIONS if np.isfinite(facts.series.values[curve.column]).any()]
    plot_grid = PlotGrid([_plot(facts, curve, marks) for curve in (*_SPEED, *operations[:1])])
    summary = _speed_summary(facts)
    return Section("Speed", [Note(summary), plot_grid] if summary else [plot_grid])


def _speed_summary(facts: RunFacts) -> str:
    """Return the medians of the throughput with wait and memory; empty if no line has a throughput."""
    series = facts.series
    speeds = series.values["images_per_second"]
    waits = series.values["data_wait_fraction"]
    memory = series.values["peak_memory_gb"]
    if not np.isfinite(speeds).any():
        return ""

    medians = [
        f"{np.median(own):,.0f} images/s in phase {name or '?'}"
        for number, name in enumerate(series.phases)
        if len(own := speeds[(series.phase == number) & np.isfinite(speeds)])
    ]
    text = f"Medians of the log lines: {', '.join(medians)}."
    if np.isfinite(waits).any():
        text += f" Training waited for data {format_percent(float(np.nanmean(waits)))} of the time."
    text += _operations_summary(facts)
    if np.isfinite(memory).any():
        text += f" Most device memory in use: {np.nanmax(memory):.1f} GB."
    return text


def _operations_summary(facts: RunFacts) -> str:
    """Return the median of the model operations; empty if no line has them."""
    tflops, mfu = (facts.series.values[name] for name in ("tflops", "mfu"))
    if not np.isfinite(tflops).any():
        return ""

    share = ""
    if np.isfinite(mfu).any():
        share = f", {format_percent(float(np.nanmedian(mfu)))} of the peak of its GPU"
    return f" Each process computes {np.nanmedian(tflops):,.3g} TFLOP/s of the model{share}."


def _plot(facts: RunFacts, curve: _Curve, marks: Marks) -> PlotBlock:
    """Draw a column over the samples seen, one curve per phase."""
    figure = plots.new_figure("samples seen", curve.unit, log_y=curve.log_y, percent=curve.percent)
    digits = ".1%" if curve.percent else ".4g"
    hover = f"%{{y:{digits}}} at %{{x:,}} samples"

    for number, phase in enumerate(facts.series.phases):
        samples, values = facts.series.curve(curve.column, number)
        points = plots.Points(phase, samples.tolist(), values.tolist(), plots.colour(number))
        # A line through a single point would not be visible.
        plots.add_line(figure, points, hover=hover, markers=len(samples) == 1)

    plots.add_marks(figure, marks)
    if curve.from_zero:
        figure.update_yaxes(rangemode="tozero")
    return PlotBlock(curve.title, plots.to_document(figure))


def _explanation(facts: RunFacts) -> str:
    """Return how to read the curves."""
    lines = len(facts.series)
    text = f"{lines:,} log lines, one colour per phase; dotted lines are ends of segments."

    counts = np.bincount(facts.series.phase)
    if counts.max() > 4 * BUCKETS:
        text += (
            f" Each curve is thinned to at most {4 * BUCKETS:,} points: of each of {BUCKETS} stretches the "
            "first, the lowest, the highest and the last."
        )
    return text


def _no_metrics(facts: RunFacts) -> Note:
    every = facts.job.logging.every
    return Note(f"No metrics were written yet; the first line comes after {every}.", missing=True)
