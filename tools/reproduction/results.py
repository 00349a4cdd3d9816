"""The document of an experiment: the paper's figures and ours, and what follows from them."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from reproduction.cells import Cell, Experiment
from reproduction.curves import Curve, Ratio, common_target, summarize_ratios, time_ratio
from reproduction.machine import cores, processor
from reproduction.order import Comparison, Measured, Spread, compare, spread
from reproduction.planned import PlannedRun
from reproduction.scores import Scores, score_key

Scored = Sequence[tuple[PlannedRun, Scores]]


def make_document(
    experiment: Experiment,
    scale: str,
    planned: Sequence[PlannedRun],
    scored: Scored,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the document of an experiment, ready for JSON.

    Args:
        experiment: The experiment.
        scale: "toy" or "paper".
        planned: All runs.
        scored: The runs that are done, with their scores.
        overrides: Overrides of every job, from the command line.
    """
    measured = measurements(experiment.cells, scored)
    pooled = spread(measured)
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "scale": scale,
        "protocol": experiment.scale(scale).protocol,
        "overrides": list(overrides),
        "captions": dict(experiment.captions),
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": f"{cores()} cores of {processor()}",
        "precision": sorted({run.job.sharding.precision for run in planned}),
        "runs": {"planned": len(planned), "done": len(scored)},
        "deviation": pooled.deviation if pooled.freedom else None,
        "cells": [_cell(cell, measured, pooled, scored) for cell in experiment.cells],
        "order": [_pair(comparison) for comparison in compare(experiment.cells, measured)],
        "speed": _speed(experiment, scored),
    }


def measurements(cells: Sequence[Cell], scored: Scored) -> Measured:
    """Return the accuracies in per cent of every cell that is scored, in the order of the seeds."""
    measured: dict[Cell, list[float]] = {}
    for run, scores in sorted(scored, key=lambda pair: pair[0].seed):
        for cell in run.cells:
            accuracy = scores.of(score_key(run, cell))
            if accuracy is not None and cell in cells:
                measured.setdefault(cell, []).append(100 * accuracy)

    return measured


def _cell(cell: Cell, measured: Measured, pooled: Spread, scored: Scored) -> dict[str, Any]:
    values = measured.get(cell, [])
    times = [scores.seconds[run.phase_of(cell)] for run, scores in scored if run.training.name == cell.run]
    return {
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "run": cell.run,
        "paper": cell.paper,
        "paper_time": cell.time,
        "ours": statistics.fmean(values) if values else None,
        "error": pooled.error(len(values)) if values else None,
        "each": list(values),
        "seconds": statistics.fmean(times) if times else None,
    }


def _pair(comparison: Comparison) -> dict[str, Any]:
    return {
        "better": _place(comparison.better),
        "worse": _place(comparison.worse),
        "paper": comparison.paper,
        "difference": comparison.difference,
        "error": comparison.error,
        "verdict": comparison.verdict,
    }


def _place(cell: Cell) -> dict[str, str]:
    return {"table": cell.table, "row": cell.row, "column": cell.column}


def _speed(experiment: Experiment, scored: Scored) -> dict[str, Any] | None:
    """Compare the runs of a curve with its first: how much sooner they reach an accuracy, and end."""
    curves = {name: _curves(name, scored) for name in experiment.curve}
    if not curves or not all(curves.values()):
        return None

    seeds = set.intersection(*(set(of_seed) for of_seed in curves.values()))
    if not seeds:
        return None

    series = {name: [of_seed[seed] for seed in sorted(seeds)] for name, of_seed in curves.items()}
    target = common_target([curve for group in series.values() for curve in group])
    if target <= 0:  # a run that never scored reaches nothing
        return None

    first, *others = experiment.curve
    rows = {cell.run: cell.row for cell in experiment.cells}
    return {
        "accuracy": target,
        "reference": rows[first],
        "curves": {rows[name]: group for name, group in series.items()},
        "sooner": {rows[name]: asdict(time_ratio(series[first], series[name], target)) for name in others},
        "shorter": {rows[name]: asdict(_shorter(series[first], series[name])) for name in others},
    }


def _shorter(slower: Sequence[Curve], faster: Sequence[Curve]) -> Ratio:
    """Return the ratio of the times of whole runs, which end with an evaluation."""
    return summarize_ratios([one[-1][0] / other[-1][0] for one, other in zip(slower, faster, strict=True)])


def _curves(name: str, scored: Scored) -> dict[int, list[tuple[float, float]]]:
    return {
        run.seed: [(point.seconds, point.accuracy) for point in scores.curve]
        for run, scores in scored
        if run.training.name == name and scores.curve
    }


def _commit() -> str | None:
    """Return the commit of the source of this program; None outside of a repository."""
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None

    return done.stdout.strip()
