"""Read counts, sizes, durations and cadences as people write them: 12.8B, 80GB, 30min, 20M samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from flipscale.formatting import format_value

_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_DURATION_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_BYTE_UNITS = {
    f"{letter}{infix}b": base**power
    for power, letter in enumerate("kmgt", 1)
    for infix, base in (("", 1000), ("i", 1024))
}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)"
_LARGEST = 2**63 - 1  # sample positions are int64
_LONGEST_TEXT = 80  # characters; arithmetic on a million digits would take minutes

CadenceUnit = Literal["samples", "steps", "seconds"]


@dataclass(frozen=True)
class Cadence:
    """How often something happens: every `amount` samples seen, optimizer steps, or wall-clock seconds."""

    amount: int
    unit: CadenceUnit

    def __str__(self) -> str:
        return f"{self.amount}s" if self.unit == "seconds" else f"{self.amount} {self.unit}"


def parse_count(value: object) -> int:
    """Return a count as a whole number >= 0.

    Args:
        value: A number, or a text such as "64k", "12.8B" or "1_000_000". k, M, B and T are powers of 1000, in
            upper or lower case.

    Raises:
        ValueError: If the number is negative, not whole or not below 2^63, or its unit is unknown.
    """
    shown = format_value(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{shown} is not a count; write a number such as 4096, 64k, 20M or 12.8B")

    text = _short_text(value).replace("_", "").lower()
    match = re.fullmatch(_NUMBER + r"\s*([a-z]*)", text)
    if match is None:
        raise ValueError(f"{shown} is not a count >= 0; write a number such as 4096, 64k, 20M or 12.8B")

    number, unit = match.groups()
    if unit not in _COUNT_UNITS:
        raise ValueError(f"{shown} has the unknown unit {format_value(unit)}; counts take k, M, B or T")

    # Fractions keep every digit of "9223372036854775.807k"; floats would not.
    exact = Fraction(number) * _COUNT_UNITS[unit]
    if exact > _LARGEST:
        raise ValueError(f"{shown} is too large; the largest count is {_LARGEST}")
    if exact.denominator != 1:
        raise ValueError(f"{shown} is not a whole number")

    return int(exact)


def parse_bytes(value: object) -> int:
    """Return an amount of memory or disk in bytes.

    Args:
        value: "80GB" (powers of 1000), "512GiB" (powers of 1024), or a bare number of bytes.

    Raises:
        ValueError: If `value` is anything else, or not between 1 byte and 2^63.
    """
    shown = format_value(value)
    text = _short_text(value).lower()
    match = re.fullmatch(_NUMBER + r"\s*([kmgt]i?b)?", text)
    if match is None or isinstance(value, bool):
        raise ValueError(f"{shown} is not an amount of memory or disk; write for example 80GB or 512GiB")

    number, unit = match.groups()
    amount = int(Fraction(number) * (_BYTE_UNITS[unit] if unit else 1))
    if not 0 < amount <= _LARGEST:
        raise ValueError(f"{shown} is not an amount of memory or disk between 1 byte and 2^63")

    return amount


def parse_duration(value: object) -> int:
    """Return a duration in whole seconds >= 0.

    Args:
        value: A text such as "90s", "30min", "24h", "7d" or "1h30min". A bare number is refused, since its
            unit would be a guess.

    Raises:
        ValueError: If `value` is anything else, or not a whole number of seconds.
    """
    shown = format_value(value)
    if not isinstance(value, str):
        raise ValueError(f"{shown} has no unit; write a duration such as 90s, 30min, 24h or 7d")

    text = _short_text(value).lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)([a-z]+)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{shown} is not a duration; write for example 90s, 30min, 24h or 1h30min")

    seconds = Fraction(0)
    for number, unit in parts:
        if unit not in _DURATION_UNITS:
            raise ValueError(
                f"{shown} has the unknown unit {format_value(unit)}; durations take s, min, h or d"
            )
        seconds += Fraction(number) * _DURATION_UNITS[unit]
    if seconds.denominator != 1:
        raise ValueError(f"{shown} is not a whole number of seconds")
    if seconds > _LARGEST:
        raise ValueError(f"{shown} is too long; the longest duration is {_LARGEST}s")

    return int(seconds)


def parse_cadence(value: object) -> Cadence:
    """Return a cadence.

    Args:
        value: "20M samples", "500 steps", "30min", a bare count of samples, or a cadence.

    Raises:
        ValueError: If `value` is anything else or zero, or could mean both millions and minutes.
    """
    if isinstance(value, Cadence):
        return value

    shown = format_value(value)
    if isinstance(value, str):
        words = value.strip().lower().rsplit(maxsplit=1)
        if len(words) == 2 and words[1] in ("samples", "sample", "steps", "step"):
            unit: CadenceUnit = "samples" if words[1].startswith("sample") else "steps"
            return _positive(parse_count(words[0]), unit, value)

        try:
            seconds = parse_duration(value)
        except ValueError:
            pass
        else:
            # "20m" and "20M" differ by a shift key and by a factor of 17,000: never guess.
            if re.fullmatch(r"\s*[\d.]+\s*[mM]\s*", value):
                raise ValueError(f"{shown} is ambiguous; write 20min, or 20M samples")
            return _positive(seconds, "seconds", value)

    try:
        return _positive(parse_count(value), "samples", value)
    except ValueError as error:
        raise ValueError(f"{shown} is not a cadence; write 20M samples, 500 steps or 30min") from error


def _short_text(value: object) -> str:
    """Return the text of a quantity.

    Raises:
        ValueError: If it is too long to be one.
    """
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{format_value(value)} is too large; the largest number is {_LARGEST}")

    text = str(value).strip()
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"{format_value(value)} is too long for a number with its unit")
    return text


def _positive(amount: int, unit: CadenceUnit, value: object) -> Cadence:
    if amount <= 0:
        raise ValueError(f"{format_value(value)} must be above zero")
    return Cadence(amount, unit)
