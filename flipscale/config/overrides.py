"""Overrides of the command line, such as `phases.0.samples=1B`, applied to the content of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import yaml

from flipscale.errors import UserError


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set the value of one override in the content of a file.

    Args:
        document: The content, which is changed; blocks that it lacks are added.
        override: A text of the form `key.sub=value`; the value is YAML, and a number stands for an item of a
            list.

    Raises:
        UserError: If the text has another form, or its key leads through a value or past a list.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"the override {override!r} is not of the form key.sub=value; write it so")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"the value of the override {override!r} is not valid YAML; quote it") from None

    *parents, last = key.split(".")
    node: Any = document
    for part in parents:
        node = _child(node, part, override)

    if isinstance(node, list):
        items = cast("list[Any]", node)
        items[_item_number(items, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> dict[str, Any] | list[Any]:
    child: Any
    if isinstance(node, list):
        items = cast("list[Any]", node)
        child = items[_item_number(items, part, override)]
    else:
        mapping = cast("dict[str, Any]", node)
        child = mapping.setdefault(part, {})
        # `model: vit_b16` is short for `model: {preset: vit_b16}`.
        if isinstance(child, str) and part == "model":
            child = {"preset": child}
            mapping[part] = child

    if not isinstance(child, (dict, list)):
        raise UserError(f"the override {override!r}: {part!r} holds a value, not keys; correct the key")
    return cast("dict[str, Any] | list[Any]", child)


def _item_number(items: Sequence[Any], part: str, override: str) -> int:
    numbers = [str(number) for number in range(len(items))]
    if part not in numbers:
        raise UserError(
            f"the override {override!r}: {part!r} is not an item of the list; give one of "
            f"{', '.join(numbers)}"
        )
    return int(part)
