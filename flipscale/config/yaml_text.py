"""YAML from people and from other machines: safe, strict, and bounded in time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from flipscale.files import open_regular
from flipscale.formatting import format_value

KeyPath = tuple[str | int, ...]
"""The place of a value: the keys and the numbers of items, from 0, that lead to it."""

LARGEST_FILE = 1_000_000
"""Bytes of a file; the longest job file of the paper's tables has 3,000."""
MOST_VALUES = 100_000
"""Keys and values of a file, in which an alias counts as all that it stands for."""
LONGEST_NUMBER = 40
"""Characters of a number."""

_LONGEST_MESSAGE = 400  # characters: the parser quotes tags and names of any length


class NotYamlError(Exception):
    """A text is not YAML, or beyond the limits; the message is one line."""


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        NotYamlError: If it is not valid YAML, gives a key twice, or exceeds a limit.
    """
    return parse_with_lines(text)[0]


def parse_with_lines(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the content of a YAML text, and where its values are.

    Returns:
        The content, and the lines by the places of the values, counted from 1. Only values and empty lists
        have lines, not the blocks that they are in; the line of an empty block is 0.

    Raises:
        NotYamlError: If it is not valid YAML, gives a key twice, or exceeds a limit.
    """
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        content = loader.construct_document(node)
        return _unshared(content), dict(_lines(node, ()))
    except RecursionError:
        raise NotYamlError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2026-13-45 is a ValueError
        raise NotYamlError(" ".join(str(error).split())[:_LONGEST_MESSAGE]) from None


def read_text_file(path: Path) -> str:
    """Return the text of a file of people's size.

    Raises:
        OSError: If it cannot be read, or is not a regular file: a device has no end.
        UnicodeDecodeError: If it is not UTF-8.
    """
    with open_regular(path) as file:
        data = file.read(LARGEST_FILE + 1)

    if len(data) > LARGEST_FILE:
        raise OSError(f"it has more than {LARGEST_FILE:,} bytes")
    return data.decode("utf-8")


class _BoundedLoader(yaml.SafeLoader):
    """A loader of safe YAML that also refuses a key which is given twice, instead of taking the last."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > MOST_VALUES:
            raise _too_many()
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # A sequence tagged `!!map` comes here too; the parent class refuses it.
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value if node.id == "mapping" else []

        seen: set[str] = set()
        for key_node, _ in pairs:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"the key {format_value(key)} is given twice (line {line})"
                )
            seen.add(key)

        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        numeric = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if numeric and isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST_NUMBER:
            shown = format_value(node.value)
            place = f"line {node.start_mark.line + 1}"
            raise yaml.MarkedYAMLError(
                problem=f"the number {shown} has {len(node.value):,} characters ({place})"
            )
        return super().construct_scalar(node)


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Return the number of values in a node, in which an alias counts as what it stands for.

    Args:
        node: The node.
        counted: The counts of nodes by their identity; 0 while a node is being counted.
    """
    if id(node) in counted:
        if not counted[id(node)]:
            raise yaml.MarkedYAMLError(problem=f"an alias contains itself (line {node.start_mark.line + 1})")
        return counted[id(node)]

    counted[id(node)] = 0
    count = 1
    if isinstance(node, yaml.SequenceNode):
        count += sum(_count(item, counted) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        count += sum(_count(key, counted) + _count(value, counted) for key, value in node.value)
    if count > MOST_VALUES:
        raise _too_many()

    counted[id(node)] = count
    return count


def _lines(node: yaml.Node, place: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """Yield the places of the values in a node, with their lines; merge keys (`<<`) are resolved."""
    if isinstance(node, yaml.MappingNode):
        if not node.value:
            yield place, 0
        for key, item in {str(key.value): item for key, item in node.value}.items():
            yield from _lines(item, (*place, key))
    elif isinstance(node, yaml.SequenceNode) and node.value:
        for number, item in enumerate(node.value):
            yield from _lines(item, (*place, number))
    else:
        yield place, node.start_mark.line + 1


def _unshared(value: Any) -> Any:
    """Return a copy in which an alias is a value of its own, so that a change of one does not change both."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_unshared(item) for item in cast("list[Any]", value)]
    return value


def _too_many() -> yaml.YAMLError:
    return yaml.YAMLError(f"it has more than {MOST_VALUES:,} values, with all that its aliases stand for")
