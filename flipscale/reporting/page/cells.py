"""Figures as people write them, in the cells of tables."""

from __future__ import annotations

import math
from datetime import datetime, timezone

from flipscale.config import format_duration
from flipscale.reporting.page.blocks import Cell
from flipscale.training.display import human

NONE = Cell("–")


def count(value: float | None) -> Cell:
    """A count with all its digits."""
    return NONE if value is None else Cell(f"{value:,.0f}", value)


def short(value: float | None) -> Cell:
    """A count in B, M or k."""
    return NONE if value is None else Cell(human(int(value)), value)


def share(value: float | None, tone: str = "") -> Cell:
    """A share of 1 as a percentage."""
    return NONE if value is None or not math.isfinite(value) else Cell(f"{value:.1%}", value, tone)


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
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if amount >= unit:
            return Cell(f"{amount / unit:.3g} {name}", amount)
    return Cell(f"{amount:.0f} B", amount)


def many(number: int, noun: str) -> str:
    """1 segment, 2 segments."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
