"""JSON that is read strictly: objects from texts and files, and dataclasses whose fields have their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from flipscale.errors import UserError
from flipscale.files import read_regular

T = TypeVar("T")


def parse_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object of a text.

    Raises:
        ValueError: If it holds anything else; the message says what, with `it` for the text.
    """
    try:
        value: Any = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except ValueError:
        raise ValueError("it holds no JSON" if text.strip() else "it is empty") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return cast("dict[str, Any]", value)


def read_object(path: Path, fix: str = "restore it") -> dict[str, Any]:
    """Return the JSON object of a file.

    Args:
        path: The file.
        fix: What a person can do about a damaged file, for the message.

    Raises:
        FileNotFoundError: If the file is missing.
        UserError: If there is anything else than a file, or it holds anything else than an object.
        OSError: If the file cannot be read.
    """
    try:
        return parse_object(read_regular(path))
    except (IsADirectoryError, ValueError) as error:
        how = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is damaged ({how}); {fix}") from None


def read_as(kind: type[T], path: Path, fix: str = "restore it") -> T:
    """Return the content of a file as a dataclass; keys that the class does not know are left out.

    Args:
        kind: The dataclass.
        path: The file.
        fix: What a person can do about a damaged file, for the message.

    Raises:
        FileNotFoundError: If the file is missing.
        UserError: If the file is damaged: a field is missing, has another type, or is out of range.
        OSError: If the file cannot be read.
    """
    try:
        return parse_as(kind, read_regular(path))
    except (IsADirectoryError, ValueError) as error:
        how = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is damaged ({how}); {fix}") from None


def typed(kind: type[T], record: Mapping[str, Any]) -> T:
    """Return a JSON object as a dataclass, as `parse_as` does.

    Raises:
        ValueError: If a field is missing, has another type, or is out of range; the message says which.
    """
    return parse_as(kind, json.dumps(record).encode())


def parse_as(kind: type[T], text: bytes) -> T:
    """Return the JSON object of a text as a dataclass; keys that the class does not know are left out.

    Args:
        kind: The dataclass. Its fields may have bounds (`Annotated[int, Field(ge=0)]`).
        text: The text; arrays are tuples.

    Raises:
        ValueError: If it holds no object, or if a field is missing, has another type, or is out of range; the
            message says which, with `it` for the text.
    """
    try:
        return cast("T", _adapter(kind).validate_json(text, strict=True))
    except ValidationError as invalid:
        parse_object(text)  # names what is wrong with a text that holds no object
        first = invalid.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"its {key or 'content'}: {first['msg']}") from None


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
