"""Tolerant reading of JSON records: a field that is missing or of another type counts as zero or empty.

Records of a run may be cut by a crash, or written by an older or a later version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

Record = Mapping[str, object]


def number(record: Record, key: str) -> float:
    """Return the finite number at `key`; 0.0 if there is none."""
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def integer(record: Record, key: str) -> int:
    """Return the finite number at `key`, rounded towards zero; 0 if there is none."""
    return int(number(record, key))


def text(record: Record, key: str) -> str:
    """Return the string at `key`; an empty one if there is none."""
    value = record.get(key)
    return value if isinstance(value, str) else ""


def texts(record: Record, key: str) -> tuple[str, ...]:
    """Return the items of the list at `key` as strings; no items if there is no list."""
    value = record.get(key)
    return tuple(str(item) for item in cast("list[object]", value)) if isinstance(value, list) else ()
