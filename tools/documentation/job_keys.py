"""Make the table of every key of a job file from its schema.

    python tools/documentation/job_keys.py [--write]

The command prints the table. With `--write` it replaces the table in docs/job_files.md, between the two
marker comments; tests/tools/test_job_keys.py fails if the page differs from the schema.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flipscale.config import Cadence, Job
from flipscale.config.problems import model_in
from flipscale.config.values import Default, Kind
from flipscale.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "job_files.md"
BEGIN = "<!-- Every key: made by `make docs-tables` from the schema, flipscale/config. -->"
END = "<!-- End of every key. -->"

_PLAIN = {str: "text", bool: "true or false", int: "count", float: "number"}
_DURATIONS = ((86400, "d"), (3600, "h"), (60, "min"))


class Row(NamedTuple):
    """One key of a job file."""

    key: str
    type: str
    default: str
    meaning: str


def rows(block: type[BaseModel] = Job, parent: str = "") -> Iterator[Row]:
    """Yield the keys of a block and of the blocks in it, in the order of the schema.

    Args:
        block: The schema of the block.
        parent: The key of the block with a dot behind it; empty for the job itself.
    """
    for name, field in block.model_fields.items():
        key = parent + name
        yield Row(key, _type(field.annotation, field.metadata), _default(field), _meaning(field))

        inner = model_in(field.annotation)
        if inner is not None:
            yield from rows(inner, f"{key}.{_items(field.annotation)}")


def table() -> str:
    """Return the table of every key, in Markdown."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.key}` | {row.type} | {row.default} | {row.meaning} |" for row in rows()]
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """Return a page with the table between its marker comments.

    Args:
        page: The page's text.

    Raises:
        UserError: If the page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE} lacks the comment {END if begin else BEGIN!r}; put it around the table")

    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def _items(annotation: Any) -> str:
    """Return what stands for the items of a list or a mapping of blocks: `N.` or `NAME.`."""
    if get_origin(annotation) is tuple:
        return "N."
    return "NAME." if get_origin(annotation) is dict else ""


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    kinds = [entry.text for entry in metadata if isinstance(entry, Kind)]
    if kinds:
        return kinds[0]

    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not NoneType)
    if origin is dict:
        return f"NAME: {_type(arguments[1])}"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            item = _type(arguments[0])
            return "list of blocks" if item == "block" else f"list of {item}"
        return f"[{', '.join(_type(argument) for argument in arguments)}]"
    if model_in(annotation) is not None:
        return "block"
    return _PLAIN[annotation]


def _default(field: FieldInfo) -> str:
    texts = [entry.text for entry in field.metadata if isinstance(entry, Default)]
    if texts:
        return texts[0]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see its keys"

    durations = any(isinstance(entry, Kind) and entry.text == "duration" for entry in field.metadata)
    if durations:
        return _duration(value)
    return "none" if value in (None, (), {}) else f"`{_value(value)}`"


def _duration(seconds: int) -> str:
    size, unit = next(((size, unit) for size, unit in _DURATIONS if seconds % size == 0), (1, "s"))
    # One day is written as the 24 hours that people ask a cluster for.
    if (seconds, unit) == (86400, "d"):
        return "`24h`"
    return f"`{seconds // size}{unit}`"


def _value(value: Any) -> str:
    """Return a value as a job file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Cadence):
        return _duration(value.amount).strip("`") if value.unit == "seconds" else str(value)
    if isinstance(value, int) and value >= 10**6:
        return f"{value // 10**6}M"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", f"{value:g}").replace("e+", "e")
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item) for item in cast('tuple[Any, ...]', value))}]"
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return f"{{{', '.join(f'{key}: {_value(item)}' for key, item in items)}}}"
    return str(value)


def _meaning(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    # A page of docs/ that a description names becomes a link, relative to the page of the table.
    return re.sub(r"docs/(\w+\.md)(#[\w-]+)?", r"[\1](\1\2)", text).removesuffix(".")


def main(arguments: Sequence[str]) -> int:
    """Print or write the table; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the table of every key of a job file.")
    parser.add_argument("--write", action="store_true", help="Replace the table in docs/job_files.md.")
    options = parser.parse_args(arguments)

    if options.write:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
