"""All members of one sample of a tar, including those that its index does not know."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from flipscale.data.shards.tar import DAMAGE, open_tar, split_name

_HEADER = 512  # bytes; also the unit of a tar's layout
_BEHIND_LAST = 1 << 20  # bytes behind a shard's last image or caption that are searched for other members


def members_of_sample(
    read: Callable[[int, int], bytes],
    row: np.ndarray,
    before: np.ndarray | None,
    behind: np.ndarray | None,
    shard_bytes: int,
) -> dict[str, bytes]:
    """Return all members of a sample by their extension.

    They are between the last known member of the previous sample and the first one of the next sample.

    Args:
        read: Returns the bytes of the shard from an offset on, given that and their number.
        row: Offsets and sizes of the sample's known members, as a 0-d array of MEMBER.
        before: The same of the previous sample; None for the first one.
        behind: The same of the next sample; None for the last one.
        shard_bytes: Size of the shard.
    """
    start = 0 if before is None else _end(before)
    stop = min(shard_bytes, _end(row) + _BEHIND_LAST) if behind is None else _begin(behind) - _HEADER

    span = io.BytesIO(read(start, max(stop - start, 0)))
    members: list[tuple[str, str, int, bytes]] = []
    with suppress(tarfile.TarError, *DAMAGE), open_tar(span) as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                content = span.getbuffer()[member.offset_data : member.offset_data + member.size]
                members.append((*split_name(member.name), start + member.offset_data, bytes(content)))

    own = next((key for key, _, offset, _ in members if offset == _begin(row)), None)
    return {extension: content for key, extension, _, content in reversed(members) if key == own}


def _begin(row: np.ndarray) -> int:
    """Return the offset of the first known member of a sample."""
    return min(int(row[name]) for name in ("image", "text", "cls") if row[name])


def _end(row: np.ndarray) -> int:
    """Return the offset of the first header behind the known members of a sample."""
    ends = (int(row[name]) + int(row[f"{name}_bytes"]) for name in ("image", "text", "cls"))
    return -(-max(ends) // _HEADER) * _HEADER
