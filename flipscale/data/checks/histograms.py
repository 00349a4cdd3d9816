"""Pictures of the counts of `flipscale data check`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from flipscale.errors import UserError


def draw_histogram(counts: Counter[int], title: str, unit: str, path: Path) -> None:
    """Write a PNG that shows how often each value occurs; its median is marked.

    Args:
        counts: Occurrences of each value.
        title: Title of the picture.
        unit: Label of the values.
        path: File to write.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "pictures need matplotlib; `pip install flipscale[report]`, or leave out --report"
        ) from None

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Any = figure.subplots()  # matplotlib types its keyword arguments only in part

    values = sorted(counts)
    if values:
        bins = min(60, values[-1] - values[0] + 1)
        edges = (values[0] - 0.5, values[-1] + 0.5)
        weights = [counts[value] for value in values]
        axes.hist(values, bins=bins, range=edges, weights=weights, color="#3b6ea5")
        middle = median(counts)
        axes.axvline(middle, color="#c0392b", linestyle="--", label=f"median {middle:,}")
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no usable sample", ha="center", va="center", transform=axes.transAxes)

    axes.set(title=f"{title} ({counts.total():,} samples)", xlabel=unit, ylabel="samples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(_format_count)

    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(path))


def _format_count(value: float, _: int | None) -> str:
    return f"{value:,.0f}"


def median(counts: Counter[int]) -> int:
    """Return the median of the counted values; the upper one of two.

    Raises:
        ValueError: If `counts` is empty.
    """
    left = counts.total() // 2
    for value in sorted(counts):
        left -= counts[value]
        if left < 0:
            return value

    raise ValueError("nothing was counted")
