"""The curves of a run's log lines, by phase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flipscale.formatting import format_percent
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Block, Note, Plot, Plots, Section
from flipscale.reporting.run.facts import RunMaterial
from flipscale.reporting.run.series import BUCKETS

Marks = Sequence[tuple[float, str]]


def training_section(material: RunMaterial, marks: Marks) -> Section:
    """Loss, learning rate, gradient norm and logit scale."""
    if not len(material.series):
        return Section("Training", [_no_metrics(material)])
    blocks: list[Block] = [Note(_reading(material))]
    blocks.append(
        Plots(
            [
                _curve(material, "loss", "Loss", "loss", marks),
                _curve(material, "lr", "Learning rate", "learning rate", marks),
                _curve(material, "grad_norm", "Gradient norm", "norm", marks, log_y=True),
                _curve(material, "logit_scale", "Logit scale", "scale", marks),
            ]
        )
    )
    skipped = material.series.values["skipped_steps"]
    most = int(np.nanmax(skipped)) if np.isfinite(skipped).any() else 0
    if most:
        blocks.append(Note(f"{most:,} steps changed nothing, since their loss or gradient was not finite."))
    return Section("Training", blocks)


def speed_section(material: RunMaterial, marks: Marks) -> Section:
    """Throughput and the wait for data."""
    series = material.series
    if not len(series):
        return Section("Speed", [_no_metrics(material)])
    speeds, waits = series.values["images_per_second"], series.values["data_wait_fraction"]
    blocks: list[Block] = []
    if np.isfinite(speeds).any():
        medians = [
            f"{np.median(own):,.0f} images/s in phase {name or '?'}"
            for number, name in enumerate(series.phases)
            if len(own := speeds[(series.phase == number) & np.isfinite(speeds)])
        ]
        text = f"Medians of the log lines: {', '.join(medians)}."
        if np.isfinite(waits).any():
            text += f" Training waited for data {format_percent(float(np.nanmean(waits)))} of the time."
        memory = series.values["peak_memory_gb"]
        if np.isfinite(memory).any():
            text += f" Most device memory in use: {np.nanmax(memory):.1f} GB."
        blocks.append(Note(text))
    speed = _curve(material, "images_per_second", "Throughput", "images/s", marks, from_zero=True)
    wait = _curve(
        material, "data_wait_fraction", "Waiting for data", "share of the time", marks, percent=True
    )
    return Section("Speed", [*blocks, Plots([speed, wait])])


def _curve(
    material: RunMaterial,
    name: str,
    title: str,
    unit: str,
    marks: Marks,
    *,
    log_y: bool = False,
    percent: bool = False,
    from_zero: bool = False,
) -> Plot:
    figure = plots.figure("samples seen", unit, log_y=log_y, percent=percent)
    shown = ".1%" if percent else ".4g"
    for number, phase in enumerate(material.series.phases):
        samples, values = material.series.curve(name, number)
        hover = f"%{{y:{shown}}} at %{{x:,}} samples"
        lone = len(samples) == 1
        plots.line(
            figure, phase, samples.tolist(), values.tolist(), plots.colour(number), hover=hover, markers=lone
        )
    plots.marks(figure, marks)
    if percent or from_zero:
        figure.update_yaxes(rangemode="tozero")
    return Plot(title, plots.document(figure))


def _reading(material: RunMaterial) -> str:
    lines = len(material.series)
    text = f"{lines:,} log lines, a colour a phase; dotted lines are ends of segments."
    counts = np.bincount(material.series.phase)
    if counts.max() > 4 * BUCKETS:
        text += (
            f" Each curve is thinned to at most {4 * BUCKETS:,} points: of each of {BUCKETS} stretches the "
            "first, the lowest, the highest and the last."
        )
    return text


def _no_metrics(material: RunMaterial) -> Note:
    every = material.job.logging.every
    return Note(f"No metrics were written yet; the first line comes after {every}.", missing=True)
