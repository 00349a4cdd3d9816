"""What is wrong with a file, in one sentence that names the key and the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flipscale.config.values import Strict
from flipscale.formatting import format_value

_FIXES = {
    "tuple_type": "give a list, such as [a, b]",
    "dict_type": "give keys and values, such as {name: value}",
    "model_type": "give keys and values, such as {name: value}",
    "string_type": "give a text, in quotes if YAML takes it for something else (5, yes, `a: b`)",
    "too_short": "it is empty; give at least one value",
}
"""What to do about pydantic's findings that describe Python's types."""
_LONGEST_KEY = 100  # characters; the longest that the schema knows has 50


def block_name(kind: type[Strict]) -> str:
    """Return what people call a file of this schema: job, site or evaluation."""
    return kind.__name__.lower()


def describe_problem(kind: type[Strict], error: ValidationError) -> str:
    """Return the first of pydantic's findings as one sentence.

    An unknown key comes before its consequences, such as a required key that is missing.

    Args:
        kind: The schema of the file.
        error: What pydantic found.
    """
    findings = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
    finding = findings[0]
    # A value of several types adds the name of the type that was tried: function-after[...].
    parts = [str(part) for part in finding["loc"] if "[" not in str(part)]
    key = _shortened(".".join(parts)) or f"the {block_name(kind)}"

    if finding["type"] == "extra_forbidden":
        return _describe_unknown_key(kind, finding, key)
    if finding["type"] == "missing":
        return f"the key {key} is missing"

    message = _FIXES.get(finding["type"]) or finding["msg"].removeprefix("Value error, ")
    value = format_value(finding["input"])
    shown = "" if isinstance(finding["input"], (dict, list)) or value in message else f" (given: {value})"
    return f"{key}: {message[:1].lower() + message[1:]}{shown}"


def _shortened(key: str) -> str:
    """Return a key as messages show it; the user may have chosen a part of it."""
    plain = key.isprintable() and len(key) <= _LONGEST_KEY
    return key if plain else format_value(key)


def _describe_unknown_key(kind: type[Strict], finding: ErrorDetails, key: str) -> str:
    *parents, unknown = finding["loc"]
    known = sorted(_fields_at(kind, parents))
    nearest = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known keys here: {', '.join(known)}"
    return f"unknown key {key}; {hint}"


def _fields_at(model: type[BaseModel], parents: Sequence[int | str]) -> list[str]:
    """Return the keys of the block to which `parents` lead."""
    for part in parents:
        # An item of a list, or a name that the user chose, does not lead to another block.
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = model_in(model.model_fields[part].annotation)
        if inner is not None:
            model = inner

    return list(model.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first block within the type of a field, such as Phase in tuple[Phase, ...]; None if none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation

    for argument in get_args(annotation):
        inner = model_in(argument)
        if inner is not None:
            return inner

    return None
