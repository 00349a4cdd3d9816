"""Plotly figures in the page's manner: colours that are read on white and on black, no legend, no title."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

Plot = go.Figure
COLOURS = ("#3b7dd8", "#df7a2f", "#2f9e6e", "#b0569f", "#c29a1c", "#4aa3bf", "#d1495b", "#7d8690")
PUBLISHED = "#8a94a0"  # of figures that others published


def label(text: str) -> str:
    """Text for plotly, which takes some tags for formatting."""
    return html.escape(text, quote=False)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def figure(
    x: str, y: str, *, log_x: int | str | None = None, log_y: bool = False, percent: bool = False
) -> go.Figure:
    """An empty figure with the names of its axes; `log_x` is plotly's `dtick` of a logarithmic x axis."""
    axis: dict[str, Any] = {
        "exponentformat": "B",
        "showline": True,
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12}},
    }
    plot = go.Figure()
    plot.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        margin={"l": 52, "r": 14, "t": 10, "b": 44},
        hovermode="closest",
    )
    plot.update_xaxes(**axis)
    plot.update_yaxes(**axis)
    plot.update_xaxes(
        title_text=label(x), type="log" if log_x is not None else "linear", showgrid=False, nticks=7
    )
    plot.update_yaxes(title_text=label(y), type="log" if log_y else "linear", nticks=7)
    if log_x is not None:
        plot.update_xaxes(type="log", dtick=log_x)
    if log_y:
        plot.update_yaxes(dtick="D2")
    if percent:
        plot.update_yaxes(tickformat=".0%")
    return plot


def line(
    plot: go.Figure,
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    shade: str,
    *,
    hover: str,
    markers: bool = False,
    dash: str = "solid",
    texts: Sequence[str] | None = None,
) -> None:
    """Add a curve. `hover` is plotly's template of what a point says; %{text} is its entry of `texts`."""
    plot.add_trace(
        go.Scatter(
            name=label(name),
            x=list(x),
            y=list(y),
            mode="lines+markers" if markers else "lines",
            line={"color": shade, "width": 1.8, "dash": dash},
            marker={"size": 6},
            text=None if texts is None else [label(text) for text in texts],
            hovertemplate=f"{hover}<extra>{label(name)}</extra>",
        )
    )


def points(
    plot: go.Figure,
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    shade: str,
    texts: Sequence[str],
    *,
    hover: str,
    symbol: str = "circle",
    size: int = 9,
) -> None:
    """Add points, each with a text that it says when it is pointed at."""
    plot.add_trace(
        go.Scatter(
            name=label(name),
            x=list(x),
            y=list(y),
            mode="markers",
            marker={"color": shade, "size": size, "symbol": symbol, "line": {"width": 0}},
            text=[label(text) for text in texts],
            hovertemplate=f"%{{text}}<br>{hover}<extra></extra>",
        )
    )


def curve(
    plot: go.Figure,
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    shade: str,
    texts: Sequence[str],
    *,
    dash: str,
    legend: bool,
    mark: str = "",
) -> None:
    """Add one of several curves of one name; the `legend` shows the first of them and means them all.

    `mark` is written at the curve's beginning.
    """
    plot.add_trace(
        go.Scatter(
            name=label(name),
            legendgroup=label(name),
            showlegend=legend,
            x=list(x),
            y=list(y),
            mode="lines+markers+text" if mark else "lines+markers",
            line={"color": shade, "width": 1.3, "dash": dash},
            marker={"size": 5},
            text=[label(mark)] + [""] * (len(x) - 1) if mark else None,
            textposition="bottom right",
            textfont={"size": 11, "color": shade},
            customdata=[label(text) for text in texts],
            hovertemplate="%{customdata}<br>%{y:.1%}<extra></extra>",
        )
    )


def interval(
    plot: go.Figure, name: str, x: float, y: str, ends: tuple[float, float], shade: str, *, hover: str
) -> None:
    """Add a point at the height of the category `y`, with a bar from one end of its interval to the other."""
    plot.add_trace(
        go.Scatter(
            name=label(name),
            x=[x],
            y=[label(y)],
            mode="markers",
            marker={"color": shade, "size": 10},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [ends[1] - x],
                "arrayminus": [x - ends[0]],
                "color": shade,
                "thickness": 2,
                "width": 5,
            },
            hovertemplate=f"{hover}<extra>{label(name)}</extra>",
        )
    )


def marks(plot: go.Figure, places: Sequence[tuple[float, str]]) -> None:
    """Add dotted upright lines, (x, colour) each."""
    for place, shade in places:
        plot.add_vline(x=place, line={"color": shade, "width": 1, "dash": "dot"}, opacity=0.8)


def document(plot: go.Figure) -> dict[str, Any]:
    """The figure as JSON values."""
    return json.loads(plot.to_json(engine="json") or "{}")
