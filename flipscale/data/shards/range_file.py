"""Bytes that are read by ranges as a file with random access."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from typing_extensions import Buffer


class RangeFile(io.RawIOBase):
    """Bytes that are read by ranges, such as a shard in remote storage, as a file with random access.

    Args:
        read: Reads (offset, size); it may return fewer bytes.
        size: Bytes of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset, and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        """Read into a buffer, and return the number of bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._at)
        if wanted <= 0:
            return 0

        data = self._read(self._at, wanted)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
