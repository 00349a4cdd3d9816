"""Overrides of the command line, such as `phases.0.samples=1B`, applied to the content of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from flipscale.config.yaml_text import KeyPath, NotYamlError, parse_with_lines
from flipscale.errors import UserError
from flipscale.formatting import format_value


def apply_override(document: dict[str, Any], override: str) -> tuple[KeyPath, dict[KeyPath, int]]:
    """Set the value of one override in the content of a file.

    Args:
        document: The content, which is changed; blocks that it lacks are added.
        override: A text of the form `key.sub=value`; the value is YAML, and a number stands for an item of a
            list.

    Returns:
        The place that the value was set at, and the lines of the value, as `parse_with_lines` returns them.

    Raises:
        UserError: If the text has another form, or its key leads through a value or past a list.
    """
    shown = f"the override {format_value(override)}"
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{shown} is not of the form key.sub=value; write it so")
    try:
        value, lines = parse_with_lines(text)
    except NotYamlError:
        raise UserError(
            f"the value of {shown} is not valid YAML; put it in double quotes, as in 'data.train=\"a.tar\"'"
        ) from None

    *parents, last = key.split(".")
    node: Any = document
    place: KeyPath = ()
    for part in parents:
        place = (*place, _key(node, part, shown))
        node = _child(node, place[-1], shown)

    place = (*place, _key(node, last, shown))
    cast("Any", node)[place[-1]] = value  # a list with a number, or a mapping with a name
    return place, lines


def _key(node: dict[str, Any] | list[Any], part: str, shown: str) -> str | int:
    """Return a part of the override's key as the node takes it: a number for an item of a list."""
    return _item_number(node, part, shown) if isinstance(node, list) else part


def _child(node: Any, part: str | int, shown: str) -> dict[str, Any] | list[Any]:
    child: Any
    if isinstance(part, int):
        child = node[part]
    else:
        mapping = cast("dict[str, Any]", node)
        child = mapping.setdefault(part, {})
        # `model: vit_b16` is short for `model: {preset: vit_b16}`.
        if isinstance(child, str) and part == "model":
            child = {"preset": child}
            mapping[part] = child

    if not isinstance(child, (dict, list)):
        raise UserError(f"{shown}: {format_value(str(part))} holds a value, not keys; correct the key")
    return cast("dict[str, Any] | list[Any]", child)


def _item_number(items: Sequence[Any], part: str, shown: str) -> int:
    if part not in map(str, range(len(items))):
        raise UserError(
            f"{shown}: {format_value(part)} is not an item of the list; its {len(items)} items are counted "
            "from 0"
        )
    return int(part)
