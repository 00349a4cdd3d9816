"""Append-only files with one JSON object a line, safe against a crash in the middle of a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flipscale.errors import UserError
from flipscale.files import write_durably


def append(path: Path, records: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
    """Append records; with `durable`, return only when they are on disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records (none where there is no file); a last line that a crash cut is left out.

    Raises UserError where any other line holds no JSON object.
    """
    if not path.exists():
        return []
    return [_record(path, number, line) for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1)]


def tail(path: Path, limit: int) -> list[dict[str, Any]]:
    """The whole records among the file's last `limit` bytes, oldest first; for a look from outside.

    Never raises: a file that is not there, is being rewritten, or holds damaged lines gives what it can.
    """
    try:
        with open(path, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - limit)
            file.seek(max(0, start - 1))  # one byte before, to see whether a line begins at `start`
            data = file.read(limit + 1)
    except OSError:
        return []
    whole = data.split(b"\n")[1 if start else 0 : -1]
    records: list[dict[str, Any]] = []
    for line in whole:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def scan(path: Path) -> Iterator[dict[str, Any]]:
    """The file's whole records one by one, oldest first, for a look from outside at a file of any length.

    Never raises, and leaves out what `tail` leaves out.
    """
    with suppress(OSError), open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number} is damaged: it holds no JSON object; restore the file")
    return record


def keep(path: Path, wanted: Callable[[dict[str, Any]], bool] = lambda record: True) -> None:
    """Rewrite the file with only the complete lines whose record is wanted, in one atomic step."""
    if not path.exists():
        return
    write_durably(path, "".join(json.dumps(record) + "\n" for record in read(path) if wanted(record)))


def number(record: Mapping[str, Any], key: str) -> float:
    """The number at `key`; 0 where there is none."""
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0
