"""Tolerant reading of JSON records: a field that is missing or of another type counts as zero or empty.

Records of a run may be cut by a crash, or written by an older or a later version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = Mapping[str, object]


def number(record: Record, key: str) -> float:
    """Return the finite number at `key`; 0.0 if there is none."""
    value = record.get(key)
    # Larger integers have no float.
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return 0.0
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def integer(record: Record, key: str) -> int:
    """Return the finite number at `key`, rounded towards zero; 0 if there is none."""
    value = record.get(key)
    return value if type(value) is int and abs(value) < 1 << 63 else int(number(record, key))


def text(record: Record, key: str) -> str:
    """Return the string at `key`; an empty one if there is none."""
    value = record.get(key)
    return value if isinstance(value, str) else ""


def texts(record: Record, key: str) -> tuple[str, ...]:
    """Return the items of the list at `key` as strings; no items if it is missing."""
    value = record.get(key)
    return tuple(str(item) for item in cast("list[object]", value)) if isinstance(value, list) else ()


def misread_key(record: Record, line: DataclassInstance) -> str | None:
    """Return the first key of a record whose value was not read as it was written; None if all were.

    Tolerant reading makes a zero of what has another type, so that a strict reader compares.

    Args:
        record: The record.
        line: What was read from it; keys that it does not have are not compared.
    """
    for key, value in asdict(line).items():
        written = record.get(key, value)
        read = list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
        if written is not value and (written != read or isinstance(written, bool)):
            return key
    return None
