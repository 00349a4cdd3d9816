"""Append-only files with one JSON object per line, safe against a crash in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from flipscale.documents import parse_as, parse_object
from flipscale.errors import UserError
from flipscale.files import naming, open_regular, read_regular, set_aside, write_durably

T = TypeVar("T")


def append(path: Path, records: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
    """Append records to a file, which is made if it does not exist.

    Args:
        path: The file.
        records: Mappings of JSON values.
        durable: Return only when the records are on disk.
    """
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, or none if the file is missing; a last line that a crash cut is left out.

    Raises:
        UserError: If any other line holds no JSON object, or if there is anything else than a file.
        OSError: If the file cannot be read.
    """
    return [_parsed(path, number, line) for number, line in enumerate(_whole_lines(path), 1)]


def read_as(kind: type[T], path: Path, fix: str = "restore the file") -> list[T]:
    """Return the records of a file as dataclasses; see `read` and `documents.parse_as`.

    Args:
        kind: The dataclass.
        path: The file.
        fix: What a person can do about a damaged line, for the message.

    Raises:
        UserError: If a line is damaged: a field is missing, has another type, or is out of range.
        OSError: If the file cannot be read.
    """
    lines: list[T] = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            lines.append(parse_as(kind, line))
        except ValueError as error:
            raise _damage(path, number, error, fix) from None
    return lines


def tail(path: Path, limit: int) -> list[dict[str, Any]]:
    """Return the whole records among the last bytes of a file, oldest first, for an observer of a run.

    This never raises: a file that is missing, is being rewritten, or holds damaged lines gives what it can.

    Args:
        path: The file.
        limit: The number of bytes at the end of the file that are read.
    """
    try:
        with open_regular(path) as file:
            start = max(0, os.fstat(file.fileno()).st_size - limit)
            file.seek(max(0, start - 1))  # one byte before, to see whether a line begins at `start`
            data = file.read(limit + 1)
    except OSError:
        return []

    whole = data.split(b"\n")[1 if start else 0 : -1]
    return [record for record in map(_object_of, whole) if record is not None]


def scan(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole records of a file of any length, oldest first, for an observer of a run.

    This never raises, and leaves out what `tail` leaves out.
    """
    with suppress(OSError), open_regular(path) as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            record = _object_of(line)
            if record is not None:
                yield record


def keep(path: Path, wanted: Callable[[dict[str, Any]], bool] = lambda record: True) -> None:
    """Rewrite a file with only the complete lines whose record is wanted, in one atomic step.

    Raises:
        UserError: As `read` does.
        OSError: If the file cannot be read or written.
    """
    records = read(path)
    if path.exists():
        write_durably(path, "".join(json.dumps(record) + "\n" for record in records if wanted(record)))


def repair(path: Path, whole: Callable[[dict[str, Any]], bool]) -> tuple[int, Path | None]:
    """Leave damaged lines out of a file; the file as it was is set aside.

    Args:
        path: The file, which need not exist.
        whole: Whether a record has what its readers need.

    Returns:
        Number of damaged lines, and the path of the file as it was; None if no line was damaged.

    Raises:
        UserError: If there is anything else than a file.
        OSError: If the file cannot be read or written.
    """
    records = [_object_of(line) for line in _whole_lines(path)]
    good = [record for record in records if record is not None and whole(record)]
    if len(good) == len(records):
        return 0, None

    aside = set_aside(path)
    write_durably(path, "".join(json.dumps(record) + "\n" for record in good))
    return len(records) - len(good), aside


def _whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file without the last one if a crash cut it; none if the file is missing."""
    try:
        return read_regular(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except IsADirectoryError:
        raise UserError(f"{path} is not a regular file; move it away, or restore the file") from None


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return parse_object(line)
    except ValueError as error:
        raise _damage(path, number, error) from None


def _damage(path: Path, number: int, how: ValueError, fix: str = "restore the file") -> UserError:
    return UserError(f"{path}, line {number} is damaged: {how}; {fix}")


def _object_of(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if the line holds no JSON object."""
    try:
        return parse_object(line)
    except ValueError:
        return None
