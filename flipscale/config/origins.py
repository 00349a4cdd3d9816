"""Where the values of a document come from: a line of one of its files, or the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flipscale.config.yaml_text import KeyPath

Origins = dict[KeyPath, str]
"""The origin of each value by its place; what has none is a default.

Blocks have no origin of their own. That of an empty block is an empty text: what is in it are defaults,
although a base may have a value in its place, such as null.
"""

COMMAND_LINE = "the command line"


def file_origins(path: Path, lines: Mapping[KeyPath, int]) -> Origins:
    """Return the origins of the values of one file: PATH:LINE.

    Args:
        path: The file.
        lines: The lines of its values, as `parse_with_lines` returns them.
    """
    shown = os.path.normpath(path)
    return {place: f"{shown}:{line}" if line else "" for place, line in lines.items()}


def merge_origins(base: Origins, own: Origins) -> Origins:
    """Return the origins of a document that is merged over its base: blocks merge, lists are replaced."""
    replaced = {_replaced_place(place) for place, origin in own.items() if origin}
    above = {place[:length] for place in own for length in range(1, len(place) + 1)}
    kept = {
        place: origin
        for place, origin in base.items()
        if place not in above and not any(place[:length] in replaced for length in range(1, len(place) + 1))
    }
    return kept | own


def override_origins(origins: Origins, place: KeyPath, value: Mapping[KeyPath, int]) -> Origins:
    """Return the origins of a document with the value of an override.

    Args:
        origins: The origins before the override.
        place: The place of the value, which replaces all that was there.
        value: The lines of the value's own values, as `parse_with_lines` returns them.
    """
    # What is above stays: `model: vit_b16` is where the preset comes from after `model.image_size=112`.
    kept = {other: origin for other, origin in origins.items() if other[: len(place)] != place}
    return kept | {(*place, *inner): COMMAND_LINE if line else "" for inner, line in value.items()}


def origin_of(origins: Origins, place: KeyPath) -> str | None:
    """Return the origin of a value of the resolved job; None for a default.

    A short form stands for all that it is expanded to: `model: vit_b16` for `model.preset`.
    """
    lengths = range(len(place), 0, -1)
    return next((origins[place[:length]] for length in lengths if place[:length] in origins), None) or None


def _replaced_place(place: KeyPath) -> KeyPath:
    """Return what a value of a file replaces in the base: a value, or the whole list that it is in."""
    return next((place[:number] for number, part in enumerate(place) if isinstance(part, int)), place)
