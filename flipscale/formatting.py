"""Numbers, durations and sizes as people write them, in tables, pages and messages.

There is one function per kind of quantity, so that a quantity looks the same on the terminal, on a page and
in a message. `flipscale.config.units` reads such texts.
"""

from __future__ import annotations

import math
import unicodedata

_COUNT_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "k"))
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_BINARY_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_SLOW = 10  # per second; below it, a rate without decimals would be rounded too far
_SHOWN = 80  # characters of a value in a message


def format_count(count: int) -> str:
    """Return a count >= 0 with four digits and its unit: 12.8B, 20.5M, 4.096k, 960."""
    for size, unit in _COUNT_UNITS:
        if count >= size:
            return f"{count / size:.4g}{unit}"

    return str(count)


def format_millions(count: int) -> str:
    """Return a count in millions, as parameters of models are given: 86.2 M."""
    return f"{count / 1e6:.1f} M"


def format_quantity(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural ends in "s": 1 segment, 2 segments, 1,000 segments."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_rate(per_second: float) -> str:
    """Return a rate per second: without decimals from 10 on, with two digits below."""
    return f"{per_second:,.0f}" if per_second >= _SLOW else f"{per_second:.2g}"


def format_digits(number: float) -> str:
    """Return a number >= 0 with three digits, or all before the point: 1,234, 56.7, 0.0891, 1.23e+20."""
    if number >= 1e12 or 0 < number < 1e-6:
        return f"{number:.3g}"
    if number >= 100 or number == 0:
        return f"{number:,.0f}"
    return f"{number:.{2 - math.floor(math.log10(number))}f}"


def format_percent(share: float) -> str:
    """Return a share of 1 as a percentage with one decimal: 12.3%."""
    return f"{share:.1%}"


def format_interval(interval: tuple[float, float]) -> str:
    """Return an interval of shares of 1, as percentages: 11.8% to 12.9%."""
    low, high = interval
    return f"{format_percent(low)} to {format_percent(high)}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 45s, 3min 20s, 2h 05min, 3d 04h."""
    whole = max(0, round(seconds))

    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}min {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}min"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"


def format_hours(seconds: float) -> str:
    """Return the duration of an estimate in hours, minutes or seconds: 1,234.5 h, 12.0 min, 0.0674 s."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{format_digits(seconds)} s"


def format_minutes(seconds: int) -> str:
    """Return a time limit in whole minutes, rounded down, as Slurm takes it: 90 min."""
    return f"{seconds // 60} min"


def format_clock(seconds: float) -> str:
    """Return a duration as a clock shows it: 26:05:09 for hours, minutes and seconds."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def format_bytes(size: float) -> str:
    """Return a size of files with three digits, in powers of 1000: 1.23 GB, 45.6 kB, 789 B."""
    for unit, name in _BYTE_UNITS:
        if size >= unit:
            return f"{size / unit:.3g} {name}"

    return f"{size:.0f} B"


def format_megabytes(size: float) -> str:
    """Return a size of files in powers of 1000, always in MB: 0.4 MB, 1234.5 MB."""
    return f"{size / 1e6:.1f} MB"


def format_gib(size: float, decimals: int = 1) -> str:
    """Return an amount of memory or disk, in powers of 1024: 78.2 GiB.

    Args:
        size: Bytes.
        decimals: Digits after the point.
    """
    return f"{size / 2**30:.{decimals}f} GiB"


def pick_memory_unit(largest: float) -> tuple[str, int]:
    """Return the unit of a table of memory, and its bytes: the largest unit that gives 0.1 or more.

    Args:
        largest: The largest amount of the table, in bytes.
    """
    return next(((name, size) for size, name in _BINARY_UNITS if largest >= size / 10), ("KiB", 2**10))


def control_character(text: str) -> str | None:
    """Return the first character that ends a line somewhere or moves a terminal's cursor; None if none does.

    These are the control characters, NEL among them, the line and paragraph separators of Unicode, and the
    halves of characters that stand for bytes which are not UTF-8.
    """
    return next((sign for sign in text if unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs")), None)


def format_value(value: object) -> str:
    """Return a value of a file or an option as messages quote it: its first 80 characters, on one line.

    Characters that would move a terminal's cursor or end the line are escaped.
    """
    try:
        text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list within itself
        return f"a very long {type(value).__name__}"

    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
