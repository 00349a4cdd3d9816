"""Append-only files with one JSON object per line, safe against a crash in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from flipscale.errors import UserError
from flipscale.files import write_durably


def append(path: Path, records: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
    """Append records to a file, which is made if it does not exist.

    Args:
        path: The file.
        records: Mappings of JSON values.
        durable: Return only when the records are on disk.
    """
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, or none if there is no file; a last line that a crash cut is left out.

    Raises:
        UserError: If any other line holds no JSON object.
    """
    if not path.exists():
        return []
    return [_record(path, number, line) for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1)]


def tail(path: Path, limit: int) -> list[dict[str, Any]]:
    """Return the whole records among the last bytes of a file, oldest first, for an observer of a run.

    This never raises: a file that is missing, is being rewritten, or holds damaged lines gives what it can.

    Args:
        path: The file.
        limit: The number of bytes at the end of the file that are read.
    """
    try:
        with open(path, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - limit)
            file.seek(max(0, start - 1))  # one byte before, to see whether a line begins at `start`
            data = file.read(limit + 1)
    except OSError:
        return []

    whole = data.split(b"\n")[1 if start else 0 : -1]
    return [record for record in map(_parsed, whole) if record is not None]


def scan(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole records of a file of any length, oldest first, for an observer of a run.

    This never raises, and leaves out what `tail` leaves out.
    """
    with suppress(OSError), open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            record = _parsed(line)
            if record is not None:
                yield record


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    record = _parsed(line)
    if record is None:
        raise UserError(f"{path}, line {number} is damaged: it holds no JSON object; restore the file")
    return record


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if the line holds no JSON object."""
    try:
        record: Any = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", record) if isinstance(record, dict) else None


def keep(path: Path, wanted: Callable[[dict[str, Any]], bool] = lambda record: True) -> None:
    """Rewrite a file with only the complete lines whose record is wanted, in one atomic step.

    Raises:
        UserError: As `read` does.
    """
    if not path.exists():
        return
    write_durably(path, "".join(json.dumps(record) + "\n" for record in read(path) if wanted(record)))
