"""Plotly figures in the style of the pages: readable on white and on black, without legend and title."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import plotly.graph_objects as go

from flipscale.formatting import format_interval

COLOURS = ("#3b7dd8", "#df7a2f", "#2f9e6e", "#b0569f", "#c29a1c", "#4aa3bf", "#d1495b", "#7d8690")
PUBLISHED = "#8a94a0"
"""The colour of numbers that others published."""


class Figure(Protocol):
    """The methods of plotly's figure that the pages use; plotly itself has no types."""

    def add_trace(self, trace: object) -> object:
        """Add a curve or a set of points."""
        ...

    def add_vline(self, x: float, **settings: object) -> object:
        """Add a vertical line."""
        ...

    def update_layout(self, **settings: object) -> object:
        """Change settings of the whole figure."""
        ...

    def update_xaxes(self, **settings: object) -> object:
        """Change settings of the x axis."""
        ...

    def update_yaxes(self, **settings: object) -> object:
        """Change settings of the y axis."""
        ...

    def to_json(self, *, engine: str) -> str | None:
        """Return the figure as JSON text."""
        ...


@dataclass(frozen=True)
class Points:
    """The points of one curve or group, with its name and colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    texts: Sequence[str] = ()
    """The texts that appear when the pointer rests on the points, one per point."""


def label(text: str) -> str:
    """Escape a text for plotly, which interprets some HTML tags."""
    return html.escape(text, quote=False)


def colour(number: int) -> str:
    """Return the colour of the curve with this number; colours repeat after eight curves."""
    return COLOURS[number % len(COLOURS)]


def new_figure(
    x: str, y: str, *, log_x: int | str | None = None, log_y: bool = False, percent: bool = False
) -> Figure:
    """Return an empty figure.

    Args:
        x: Name of the x axis.
        y: Name of the y axis.
        log_x: Plotly's `dtick` of a logarithmic x axis, or None for a linear one.
        log_y: Whether the y axis is logarithmic.
        percent: Whether the y axis shows shares of 1 as percentages.
    """
    figure = cast("Figure", go.Figure())
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        margin={"l": 52, "r": 14, "t": 10, "b": 44},
        hovermode="closest",
    )

    common: dict[str, object] = {
        "exponentformat": "B",
        "showline": True,
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12}},
        "nticks": 7,
    }
    figure.update_xaxes(**common)
    figure.update_yaxes(**common)
    figure.update_xaxes(title_text=label(x), type="log" if log_x is not None else "linear", showgrid=False)
    figure.update_yaxes(title_text=label(y), type="log" if log_y else "linear")

    if log_x is not None:
        figure.update_xaxes(dtick=log_x)
    if log_y:
        figure.update_yaxes(dtick="D2")
    if percent:
        figure.update_yaxes(tickformat=".0%")

    return figure


def add_line(figure: Figure, points: Points, *, hover: str, markers: bool = False) -> None:
    """Add a curve.

    Args:
        figure: The figure to draw in.
        points: The points of the curve.
        hover: Plotly's template of the text at a point; `%{text}` is the point's entry of `texts`.
        markers: Whether each point is marked.
    """
    figure.add_trace(
        go.Scatter(
            name=label(points.name),
            x=list(points.x),
            y=list(points.y),
            mode="lines+markers" if markers else "lines",
            line={"color": points.colour, "width": 1.8, "dash": "solid"},
            marker={"size": 6},
            text=[label(text) for text in points.texts] or None,
            hovertemplate=f"{hover}<extra>{label(points.name)}</extra>",
        )
    )


def add_points(figure: Figure, points: Points, *, hover: str, symbol: str = "circle", size: int = 9) -> None:
    """Add points that are not joined.

    Args:
        figure: The figure to draw in.
        points: The points, each with its text.
        hover: Plotly's template of the text at a point, which follows the point's own text.
        symbol: Plotly's name of the marker.
        size: Size of the marker in pixels.
    """
    figure.add_trace(
        go.Scatter(
            name=label(points.name),
            x=list(points.x),
            y=list(points.y),
            mode="markers",
            marker={"color": points.colour, "size": size, "symbol": symbol, "line": {"width": 0}},
            text=[label(text) for text in points.texts],
            hovertemplate=f"%{{text}}<br>{hover}<extra></extra>",
        )
    )


def add_grouped_curve(figure: Figure, points: Points, *, dash: str, legend: bool, mark: str = "") -> None:
    """Add one of several curves that share a name and an entry of the legend.

    Args:
        figure: The figure to draw in.
        points: The points, each with its text.
        dash: Plotly's name of the line style.
        legend: Whether this curve is the one that the legend shows; true for the first of the group.
        mark: Text at the first point of the curve.
    """
    figure.add_trace(
        go.Scatter(
            name=label(points.name),
            legendgroup=label(points.name),
            showlegend=legend,
            x=list(points.x),
            y=list(points.y),
            mode="lines+markers+text" if mark else "lines+markers",
            line={"color": points.colour, "width": 1.3, "dash": dash},
            marker={"size": 5},
            text=[label(mark)] + [""] * (len(points.x) - 1) if mark else None,
            textposition="bottom right",
            textfont={"size": 11, "color": points.colour},
            customdata=[label(text) for text in points.texts],
            hovertemplate="%{customdata}<br>%{y:.1%}<extra></extra>",
        )
    )


def add_interval(
    figure: Figure, name: str, category: str, value: float, ends: tuple[float, float], colour: str
) -> None:
    """Add a point with its interval, as a horizontal bar.

    Args:
        figure: A figure whose y axis has categories.
        name: Name of the point.
        category: Category of the y axis at whose height the point is drawn.
        value: Position on the x axis, a share of 1.
        ends: Lower and upper end of the interval.
        colour: Colour of point and bar.
    """
    low, high = ends
    hover = f"%{{x:.1%}} ({format_interval(ends)})"

    figure.add_trace(
        go.Scatter(
            name=label(name),
            x=[value],
            y=[label(category)],
            mode="markers",
            marker={"color": colour, "size": 10},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [high - value],
                "arrayminus": [value - low],
                "color": colour,
                "thickness": 2,
                "width": 5,
            },
            hovertemplate=f"{hover}<extra>{label(name)}</extra>",
        )
    )


def add_marks(figure: Figure, marks: Sequence[tuple[float, str]]) -> None:
    """Add dotted vertical lines.

    Args:
        figure: The figure to draw in.
        marks: Position on the x axis and colour of each line.
    """
    for x, shade in marks:
        figure.add_vline(x=x, line={"color": shade, "width": 1, "dash": "dot"}, opacity=0.8)


def to_document(figure: Figure) -> dict[str, object]:
    """Return the figure as a JSON document."""
    return json.loads(figure.to_json(engine="json") or "{}")
