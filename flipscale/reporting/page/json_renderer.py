"""The document of a page, for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import cast


def to_json(document: object) -> str:
    """Write a document as JSON that every parser accepts.

    Args:
        document: Nested dictionaries, lists, tuples, strings and numbers.

    Returns:
        The text of the file. Numbers that are not finite become `null`.
    """
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    """Replace every number that is not finite by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        items = cast("Mapping[object, object]", value)
        return {str(key): _finite(item) for key, item in items.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast("list[object] | tuple[object, ...]", value)]
    return value
