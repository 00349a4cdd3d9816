"""Files of class names or prompt templates: one entry per line, or a list in JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from flipscale.data.text.caption import MOST_BYTES
from flipscale.errors import UserError

_LARGEST = 64 << 20  # bytes of a file
# An entry of a list in quotes, a lambda, an assignment, or the bracket of a list on a line of its own.
_PYTHON = re.compile(
    r"""[rbfu]{0,2}(['"]).*\1,?|\[\s*['"].*\],?|lambda\b.*:.*|\w+ = .*[\[('"]|[\[({]|[\])}],?"""
)


def read_entries(path: Path, noun: str) -> list[str]:
    """Return the entries of a file, without blanks around them.

    A file is JSON if its name ends in .json or its text is a JSON list: a list of texts, or an object whose
    keys count the texts from 0.

    Args:
        path: The file, which exists.
        noun: What the entries are, for messages.

    Raises:
        UserError: If the file is not UTF-8 or empty, an entry is empty or longer than a caption, or a line is
            Python.
    """
    text = _read_text(path, noun)
    listed = _json_list(path, text, noun)
    entries = [entry.strip() for entry in (_lines(text) if listed is None else listed)]
    place = "line" if listed is None else "entry"
    if not entries:
        raise UserError(f"{noun} {path} is empty; write one entry per line")

    for number, entry in enumerate(entries, start=1):
        if not entry:
            raise UserError(f"{noun} {path}, {place} {number} is empty; write one entry per line")
        if len(entry.encode("utf-8", "replace")) > MOST_BYTES:
            raise UserError(f"{noun} {path}, {place} {number} has more than {MOST_BYTES} bytes; shorten it")
        if listed is None and _PYTHON.fullmatch(entry):
            raise UserError(
                f"{noun} {path}, line {number} ({entry[:80]!r}) is Python; write the bare text, one entry "
                "per line, or a JSON list"
            )
    return entries


def _read_text(path: Path, noun: str) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{noun} {path} has more than {_LARGEST >> 20} MiB; give a file of entries")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{noun} {path} is not UTF-8 (byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{noun} {path} cannot be read ({error.strerror}); restore it") from None


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _json_list(path: Path, text: str, noun: str) -> list[str] | None:
    """Return the texts of a JSON document; None if the file is not JSON."""
    named = path.suffix.lower() == ".json"
    if not named and not text.lstrip().startswith("["):
        return None
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not named:
            return None
        raise UserError(f"{noun} {path} is not JSON ({str(error)[:80]}); write a list of texts") from None

    if isinstance(document, dict):
        mapping = cast("dict[str, Any]", document)
        document = [mapping.get(str(number)) for number in range(len(mapping))]
    entries = cast("list[Any]", document) if isinstance(document, list) else [None]
    if not all(isinstance(entry, str) for entry in entries):
        raise UserError(
            f"{noun} {path} is neither a list of texts nor an object that numbers them from 0; save a list"
        )
    return cast("list[str]", entries)
