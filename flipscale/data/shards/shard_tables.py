"""The members tables of single shards, for an index without a table of all: kept on disk, believed never."""

from __future__ import annotations

import os
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy

from flipscale.data.shards.tar import MEMBER
from flipscale.data.shards.tar_members import BLOCK
from flipscale.files import open_regular

_MOST_TEXT = 4096  # characters of a reason
_ERRORS = (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, BadZipFile, zlib.error)


def load_table(path: Path, shard_bytes: int) -> tuple[np.ndarray, str] | None:
    """Return a shard's members and why it ends early ("" if it is whole), or None if the file is not usable.

    Args:
        path: The file.
        shard_bytes: Size of the shard, in which all members must be.
    """
    try:
        with open_regular(path) as file, ZipFile(file) as archive:
            with archive.open("members.npy") as stream:
                members = _array(stream, MEMBER, shard_bytes // BLOCK)
            with archive.open("damage.npy") as stream:
                damage = _text(stream)
    except _ERRORS:
        return None

    whole = all(row_fits(row, shard_bytes) for row in members.tolist())
    return (members, damage) if whole else None


def save_table(path: Path, members: np.ndarray, damage: str) -> None:
    """Keep a shard's members; if the directory is read-only, every process finds them for itself."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        with open(partial, "xb") as file:
            np.savez_compressed(file, members=members, damage=np.array(damage))
        os.replace(partial, path)


def row_fits(row: tuple[int, ...], shard_bytes: int) -> bool:
    """Return whether a row of MEMBER is possible in a shard: it has members, and all are within the shard."""
    places = [(offset, size) for offset, size in zip(row[:3], row[3:], strict=True) if offset or size]
    return bool(places) and all(BLOCK <= offset <= shard_bytes - size for offset, size in places)


def _array(stream: IO[bytes], dtype: np.dtype, most: int) -> np.ndarray:
    """Read an array (n,) of at most `most` elements; its header decides before memory is taken.

    Raises:
        ValueError: If it is another array, or shorter or longer than its header says.
    """
    shape, found = _header(stream)
    if found != dtype or len(shape) != 1 or not 0 <= shape[0] <= most:
        raise ValueError("another table")

    data = stream.read(shape[0] * dtype.itemsize + 1)
    if len(data) != shape[0] * dtype.itemsize:
        raise ValueError("another length")
    return np.frombuffer(data, dtype)


def _text(stream: IO[bytes]) -> str:
    shape, dtype = _header(stream)
    if shape != () or dtype.kind != "U" or dtype.itemsize > 4 * _MOST_TEXT:
        raise ValueError("not a text")

    data = stream.read(dtype.itemsize + 1)
    if len(data) != dtype.itemsize:
        raise ValueError("another length")
    return str(np.frombuffer(data, dtype)[0]) if data else ""


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    if npy.read_magic(stream) != (1, 0):
        raise ValueError("another version")
    shape, _, dtype = npy.read_array_header_1_0(stream)
    return shape, dtype
