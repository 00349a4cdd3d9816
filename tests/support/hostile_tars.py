"""Tars that no writer makes: headers with any size and type, in any order."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

END = bytes(1024)
"""The end mark."""


def header(name: str, size: int, type: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header with a right checksum; the size may be negative or huge."""
    info = tarfile.TarInfo(name)
    info.type = type
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 or size >= 8**11 else b"%011o\0" % size
    if size >= 8**11:
        raw[124] |= 0x80
    return checked(raw)


def checked(raw: bytes | bytearray) -> bytes:
    """Return a header of 512 bytes with its checksum made right."""
    raw = bytearray(raw)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(content: bytes) -> bytes:
    """Return a content as it is in a tar."""
    return content + bytes(-len(content) % 512)


def file(name: str, content: bytes, type: bytes = tarfile.REGTYPE) -> bytes:
    """Return the header and content of one member."""
    return header(name, len(content), type) + padded(content)


def files(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the members, without an end mark."""
    return b"".join(file(name, content) for name, content in members)


def pax(key: str, value: str) -> bytes:
    """Return one record of a pax header."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


class CountingFile(io.BytesIO):
    """A file that knows the most bytes that were read at once, and the number of reads."""

    def __init__(self, content: bytes, declared: int = 0) -> None:
        super().__init__(content)
        self.largest = 0
        self.reads = 0
        self._declared = declared

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; the file seems to have `declared` bytes at least."""
        at = super().seek(offset, whence)
        return max(at, self._declared) if whence == 2 else at

    def read(self, size: int | None = -1) -> bytes:
        """Read, and count."""
        assert size is not None
        assert size >= 0
        self.largest = max(self.largest, size)
        self.reads += 1
        return super().read(size)
