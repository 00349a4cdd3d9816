"""Figures as people write them, in the cells of tables."""

from __future__ import annotations

import math
from datetime import datetime, timezone

from flipscale.formatting import format_bytes, format_count, format_duration, format_percent
from flipscale.reporting.page.blocks import Cell

NONE = Cell("–")


def count(value: float | None) -> Cell:
    """A count with all its digits."""
    return NONE if value is None else Cell(f"{value:,.0f}", value)


def short(value: float | None) -> Cell:
    """A count in B, M or k."""
    return NONE if value is None else Cell(format_count(int(value)), value)


def share(value: float | None, tone: str = "") -> Cell:
    """A share of 1 as a percentage."""
    return NONE if value is None or not math.isfinite(value) else Cell(format_percent(value), value, tone)


def real(value: float | None, digits: str = ".4g") -> Cell:
    return NONE if value is None or not math.isfinite(value) else Cell(format(value, digits), value)


def duration(seconds: float | None) -> Cell:
    return NONE if seconds is None else Cell(format_duration(seconds), seconds)


def moment(seconds: float) -> Cell:
    """A time, seconds since 1970, in UTC."""
    stamp = datetime.fromtimestamp(seconds, timezone.utc)
    return Cell(stamp.strftime("%Y-%m-%d %H:%M:%S"), seconds)


def size(amount: float) -> Cell:
    """Bytes."""
    return Cell(format_bytes(amount), amount)
