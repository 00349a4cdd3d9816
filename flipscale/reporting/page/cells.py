"""Cells of tables with numbers as people write them. A cell without a value shows a dash."""

from __future__ import annotations

import math
from datetime import datetime, timezone

from flipscale.formatting import format_bytes, format_count, format_duration, format_percent
from flipscale.reporting.page.blocks import Cell, Tone

NONE = Cell("–")
"""The cell of a value that is not known."""


def count_cell(value: float | None) -> Cell:
    """Return a cell with all digits of a count."""
    return NONE if value is None else Cell(f"{value:,.0f}", value)


def short_count_cell(value: float | None) -> Cell:
    """Return a cell with a count in B, M or k."""
    return NONE if value is None else Cell(format_count(int(value)), value)


def percent_cell(share: float | None, tone: Tone = "") -> Cell:
    """Return a cell with a share of 1 as a percentage."""
    if share is None or not math.isfinite(share):
        return NONE
    return Cell(format_percent(share), share, tone)


def number_cell(value: float | None, digits: str = ".4g") -> Cell:
    """Return a cell with a number in the given format."""
    if value is None or not math.isfinite(value):
        return NONE
    return Cell(format(value, digits), value)


def duration_cell(seconds: float | None) -> Cell:
    """Return a cell with a duration."""
    return NONE if seconds is None else Cell(format_duration(seconds), seconds)


def time_cell(seconds: float) -> Cell:
    """Return a cell with a time in UTC.

    Args:
        seconds: Seconds since 1970.
    """
    stamp = datetime.fromtimestamp(seconds, timezone.utc)
    return Cell(stamp.strftime("%Y-%m-%d %H:%M:%S"), seconds)


def bytes_cell(amount: float) -> Cell:
    """Return a cell with a number of bytes in TB, GB, MB or kB (powers of 1000)."""
    return Cell(format_bytes(amount), amount)
