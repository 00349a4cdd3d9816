"""Make the reference of the public Python names from their docstrings.

    python tools/documentation/python_names.py [--write]

The command prints the reference. With `--write` it replaces that of docs/python_api.md, between the two
marker comments; tests/test_api.py fails if the page differs from the code.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flipscale import api
from flipscale.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "python_api.md"
BEGIN = "<!-- Every name: made by `make docs-tables` from the docstrings of flipscale/api. -->"
END = "<!-- End of every name. -->"

_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$")
_ITEM = re.compile(r"^(\w+): (.*)$")


def reference() -> str:
    """Return the reference of all names, functions first, in Markdown."""
    names = sorted(api.__all__, key=lambda name: (name[0].isupper(), name))
    return "\n".join(line for name in names for line in _entry(name))


def page_with_reference(page: str) -> str:
    """Return a page with the reference between its marker comments.

    Raises:
        UserError: If the page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE} lacks the comment {END if begin else BEGIN!r}; put it around the reference")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def _entry(name: str) -> Iterator[str]:
    value = getattr(api, name)
    yield from (f"### `flipscale.{name}`", "")
    if inspect.isfunction(value):
        yield from ("```python", f"{name}{_signature(inspect.signature(value))}", "```", "")
    yield from _paragraphs(inspect.getdoc(value) or "")


def _signature(signature: inspect.Signature) -> str:
    text = str(signature).replace("'", "")
    if len(text) <= 90:
        return text
    inner, _, result = text[1:].rpartition(") -> ")
    return "(\n" + "".join(f"    {part},\n" for part in inner.split(", ")) + f") -> {result}"


def _paragraphs(text: str) -> Iterator[str]:
    """Yield a docstring of Google's style as Markdown, in which the items of its sections are lists."""
    section = ""
    for line in text.splitlines():
        if match := _SECTION.match(line):
            section = match.group(1)
            yield from (f"*{section}*", "")
        elif section in ("", "Returns"):
            yield line.strip()
        elif match := _ITEM.match(line.strip()):
            yield f"- `{match.group(1)}`: {match.group(2)}"
        else:
            yield f"  {line.strip()}".rstrip()
    yield ""


def main(arguments: Sequence[str]) -> int:
    """Print or write the reference; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the reference of the public Python names.")
    parser.add_argument("--write", action="store_true", help="Replace the reference in docs/python_api.md.")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page_with_reference(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
