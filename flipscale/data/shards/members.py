"""All members of one sample of a tar, including those that its index does not know."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

import numpy as np

from flipscale.data.shards.range_file import RangeFile
from flipscale.data.shards.tar import check_size, kind_of, split_name
from flipscale.data.shards.tar_members import BLOCK, TarDamage, read_members

_BEHIND_LAST = 1 << 20  # bytes behind a shard's last image or caption that are searched for other members
_READ_AT_ONCE = 8 << 20  # bytes; larger spans are read header by header
_READ_AHEAD = 16 << 10  # bytes per read of headers

Read = Callable[[int, int], bytes]
"""A function that returns the bytes of a shard, given their offset and number."""


class SampleMembers(Mapping[str, bytes]):
    """The contents of a sample's members by their extension. A content is read when it is asked for.

    Asking raises BadSample if the member is too large.

    Args:
        contents: By extension, the function that reads the content.
    """

    def __init__(self, contents: Mapping[str, Callable[[], bytes]]) -> None:
        self._contents = contents

    def __getitem__(self, extension: str) -> bytes:
        return self._contents[extension]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)


def members_of_sample(
    read: Read, row: np.ndarray, before: np.ndarray | None, behind: np.ndarray | None, shard_bytes: int
) -> SampleMembers:
    """Return all members of a sample by their extension; if an extension repeats, the first one.

    They are between the last known member of the previous sample and the first one of the next sample.

    Args:
        read: Reads the shard.
        row: Offsets and sizes of the sample's known members, as a 0-d array of MEMBER.
        before: The same of the previous sample; None for the first one.
        behind: The same of the next sample; None for the last one.
        shard_bytes: Size of the shard.
    """
    start = 0 if before is None else _end(before)
    stop = min(shard_bytes, _end(row) + _BEHIND_LAST) if behind is None else _begin(behind) - BLOCK
    if stop - start <= _READ_AT_ONCE:
        read = _at_once(read, start, stop)

    files = list(_files(read, start, stop))
    own = next((key for key, _, offset, _ in files if offset == _begin(row)), None)
    contents: dict[str, Callable[[], bytes]] = {}
    for key, extension, offset, size in files:
        if key == own:
            contents.setdefault(extension, partial(_content, read, extension, offset, size))

    return SampleMembers(contents)


def _at_once(read: Read, start: int, stop: int) -> Read:
    content = read(start, max(stop - start, 0))
    return lambda offset, size: content[offset - start : offset - start + size]


def _files(read: Read, start: int, stop: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield key, extension, offset and size of each plain file in the span, up to damage."""
    span = RangeFile(lambda at, size: read(start + at, size), max(stop - start, 0))
    with suppress(TarDamage):  # the span has no end mark
        for member in read_members(io.BufferedReader(span, _READ_AHEAD)):
            if member.is_file:
                yield *split_name(member.name), start + member.offset, member.size


def _content(read: Read, extension: str, offset: int, size: int) -> bytes:
    check_size(kind_of(extension), size)
    return read(offset, size)


def _begin(row: np.ndarray) -> int:
    """Return the offset of the first known member of a sample."""
    return min(int(row[name]) for name in ("image", "text", "cls") if row[name])


def _end(row: np.ndarray) -> int:
    """Return the offset of the first header behind the known members of a sample."""
    ends = (int(row[name]) + int(row[f"{name}_bytes"]) for name in ("image", "text", "cls"))
    return -(-max(ends) // BLOCK) * BLOCK
