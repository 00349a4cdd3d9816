"""Clean shards: the usable samples of a shard as a tar that every reader of webdataset tars takes."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from flipscale.data.shards.tar import DAMAGE, Scan, read_members, split_name


class _Member(NamedTuple):
    key: str
    extension: str
    offset: int
    size: int


def write_clean(file: BinaryIO, found: Scan, good: Sequence[int], path: Path) -> int:
    """Copy the samples number `good` of an open tar, with all their members, to a new tar at `path`.

    Keys that lead outside of a directory lose what leads there. Returns the number of samples written: a key
    that is another's by then is left out.
    """
    partial = path.with_suffix(".tar.partial")
    wanted = set(good)
    owners: dict[str, int] = {}
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as out:
        for ordinal, member in _members_of_samples(file, found):
            if ordinal not in wanted:
                continue
            key = inside(member.key) or f"{ordinal:09d}"
            if owners.setdefault(key, ordinal) != ordinal:
                continue
            copy = tarfile.TarInfo(f"{key}.{member.extension}")
            copy.size = member.size
            file.seek(member.offset)
            out.addfile(copy, file)
    os.replace(partial, path)
    return len(owners)


def inside(key: str) -> str:
    """The key as a path that stays below the directory it is put in."""
    return "/".join(part for part in key.split("/") if part not in ("", ".", ".."))


def _members_of_samples(file: BinaryIO, found: Scan) -> Iterator[tuple[int, _Member]]:
    """Each whole member with the number of its sample.

    One that no index knows (a json, say) belongs to the sample of its key that it follows or goes before.
    """
    offsets = {
        int(row[name]): ordinal
        for ordinal, row in enumerate(found.members)
        for name in ("image", "text", "cls")
        if row[name]
    }
    members = _whole_members(file)
    behind: list[int | None] = [None] * len(members)  # the sample of the next known member
    following: int | None = None
    for number in reversed(range(len(members))):
        following = offsets.get(members[number].offset, following)
        behind[number] = following
    current: int | None = None
    written: set[tuple[int, str]] = set()
    for member, coming in zip(members, behind, strict=True):
        current = offsets.get(member.offset, current)
        owner = next((o for o in (current, coming) if o is not None and found.keys[o] == member.key), None)
        if owner is not None and (owner, member.extension) not in written:
            written.add((owner, member.extension))
            yield owner, member


def _whole_members(file: BinaryIO) -> list[_Member]:
    size = file.seek(0, os.SEEK_END)
    members: list[_Member] = []
    with suppress(*DAMAGE):  # what lies before the damage is whole
        for member in read_members(file):
            if member.isreg() and not member.issparse() and member.offset_data + member.size <= size:
                key, extension = split_name(member.name)
                members.append(_Member(key, extension, member.offset_data, member.size))
    return members
