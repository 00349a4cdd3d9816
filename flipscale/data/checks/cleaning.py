"""Clean shards: the usable samples of a shard as a tar that every reader of webdataset tars accepts."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from flipscale.data.shards.tar import Scan, split_name
from flipscale.data.shards.tar_members import TarDamage, read_members


class _Member(NamedTuple):
    key: str
    extension: str
    offset: int
    size: int


def write_clean(file: BinaryIO, scanned: Scan, good: Sequence[int], path: Path) -> int:
    """Copy samples of a tar, with all their members, to a new tar.

    Keys that lead outside of a directory lose the parts that do. If two keys are equal then, the second
    sample is left out.

    Args:
        file: The open tar.
        scanned: Its scan.
        good: Numbers of the samples to copy.
        path: The new tar; it appears whole or not at all.

    Returns:
        Number of samples written.
    """
    partial = path.with_suffix(".tar.partial")
    wanted = set(good)
    owners: dict[str, int] = {}

    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as out:
        for ordinal, member in _members_of_samples(file, scanned, wanted):
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
    """Return the key as a path that stays within its directory."""
    return "/".join(part for part in key.split("/") if part not in ("", ".", ".."))


def _members_of_samples(file: BinaryIO, scanned: Scan, wanted: Set[int]) -> Iterator[tuple[int, _Member]]:
    """Yield each whole member of the wanted samples with the number of its sample.

    A member that no index knows (such as a json) belongs to the sample of its key that it follows or
    precedes. If both have its key, as in a set with KEY.jpg and KEY.png, it belongs to the wanted one.
    """
    offsets: dict[int, int] = {
        int(row[name]): ordinal
        for ordinal, row in enumerate(scanned.members)
        for name in ("image", "text", "cls")
        if row[name]
    }

    members = _whole_members(file)
    behind: list[int | None] = [None] * len(members)  # the sample of the next known member
    following: int | None = None
    for number in reversed(range(len(members))):
        if members[number].offset in offsets:
            following = offsets[members[number].offset]
        behind[number] = following

    current: int | None = None
    written: set[tuple[int, str]] = set()
    for member, next_sample in zip(members, behind, strict=True):
        if member.offset in offsets:
            current = offsets[member.offset]

        near = (current,) if member.offset in offsets else (current, next_sample)
        owners = (o for o in near if o is not None and o in wanted and scanned.keys[o] == member.key)
        owner = next(owners, None)
        if owner is not None and (owner, member.extension) not in written:
            written.add((owner, member.extension))
            yield owner, member


def _whole_members(file: BinaryIO) -> list[_Member]:
    members: list[_Member] = []
    with suppress(TarDamage):  # the members before the damage are whole
        for member in read_members(file):
            if member.is_file:
                key, extension = split_name(member.name)
                members.append(_Member(key, extension, member.offset, member.size))

    return members
