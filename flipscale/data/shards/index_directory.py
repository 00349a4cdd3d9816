"""The directory of an index: which files in it are the index's own, so that no other file is ever removed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flipscale import jsonl
from flipscale.documents import read_object
from flipscale.errors import UserError
from flipscale.files import read_regular

INDEX = "index.json"
TABLE = "members.bin"
JOURNAL = "journal.jsonl"
CHECKSUMS = "checksums.bin"
TABLES = "members"
"""The folder of the members tables that were found on the first reads of shards."""

_OWN_FILES = {name + end for name in (INDEX, JOURNAL, CHECKSUMS) for end in ("", ".partial")} | {TABLE}
_JOURNAL_START = b'{"members": '
_FOLDER = re.compile(r"[0-9]{4,}")
_SHARD_TABLE = re.compile(r"[0-9]{7,}\.npz(\.[0-9a-f]{32}\.partial)?")


def table_of_shard(directory: Path, shard: int) -> Path:
    """Return the path of a shard's members table, for an index without one table of all shards."""
    return directory / TABLES / f"{shard // 1000:04d}" / f"{shard:07d}.npz"


def prepare(directory: Path) -> None:
    """Make the directory of an index, or take over one that holds an index or an unfinished one.

    Raises:
        UserError: If the directory cannot be made, or holds something else.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = sorted(os.listdir(directory))
        others = [name for name in names if name not in _OWN_FILES and name != TABLES]
        if others or (names and not is_own(directory)):
            raise UserError(
                f"{directory} is not empty and holds no index ({(others or names)[0]!r} is in it); name "
                "another directory for it"
            )

        for name in _OWN_FILES:
            path = directory / name
            if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                raise UserError(f"{path} is not a plain file; name another directory for the index")
    except OSError as error:
        raise UserError(
            f"the index directory {directory} cannot be made ({error.strerror}); name another one"
        ) from None


def is_own(directory: Path) -> bool:
    """Return whether the directory holds an index of any version, or the journal of an unfinished one."""
    with suppress(OSError, UserError):
        if {"version", "fingerprint"} <= read_object(directory / INDEX).keys():
            return True

    first = next(jsonl.scan(directory / JOURNAL), None)
    if first is not None:
        return first.keys() == {"members", "from_stats"}
    return _is_just_begun(directory)


def _is_just_begun(directory: Path) -> bool:
    """Return whether the directory holds only the beginning of a journal, whose first line a crash cut."""
    with suppress(OSError):
        names = os.listdir(directory)
        if not names or not set(names) <= {JOURNAL, f"{JOURNAL}.partial"}:
            return False
        begun = [read_regular(directory / name)[: len(_JOURNAL_START)] for name in names]
        return all(_JOURNAL_START.startswith(content) for content in begun)
    return False


def remove_tables(directory: Path) -> None:
    """Remove the members tables of single shards; a file of another name in their folders stays.

    Raises:
        OSError: If a table cannot be removed.
    """
    for table in _tables(directory / TABLES):
        table.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in the folder
            table.parent.rmdir()

    with suppress(OSError):
        (directory / TABLES).rmdir()


def remove_index(directory: Path) -> None:
    """Remove the files of an index, whatever their content, from a directory that is flipscale's own.

    Raises:
        UserError: If a file cannot be removed.
    """
    try:
        remove_tables(directory)
        for name in _OWN_FILES:
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"the index in {directory} cannot be removed ({error.strerror}); remove it") from None


def _tables(root: Path) -> Iterator[Path]:
    if root.is_symlink() or not root.is_dir():
        return

    for folder in list(root.iterdir()):
        if _FOLDER.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            for path in list(folder.iterdir()):
                if _SHARD_TABLE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    yield path
