"""The members of a tar: the only reader of tar headers, for shards that anybody may have written.

Python's tarfile decodes single headers. The walk is our own: tarfile recurses into chains of headers, reads
headers of any declared size into memory, moves backwards by negative sizes, and takes an unreadable header
for the end of the archive.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

BLOCK = 512
"""Bytes of a header; contents are padded to a multiple of it."""

MAX_HEADER_BYTES = 1 << 20
"""The most bytes of a long name or a pax header, which are read into memory."""
MAX_HEADERS = 8
"""The most headers that may precede the header of a member."""
MAX_NAME_BYTES = 4096
"""The most bytes of a member's name, as of a path on Linux."""

_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENSIONS = (*_LONG_NAMES, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)
_BEHIND_END = 1 << 20  # bytes behind the end mark that are searched for another tar
_PAX_RECORD = re.compile(rb"([0-9]{1,9}) ([^=\n]+)=")


class Member(NamedTuple):
    """A member of a tar."""

    name: str
    type: bytes  # as in the header; `tarfile.GNUTYPE_SPARSE` for every kind of sparse file
    offset: int  # bytes, of the content
    size: int  # bytes of the content
    extended: bool  # whether other headers precede its own, as for a long name

    @property
    def is_file(self) -> bool:
        """Whether the content is that of a plain file; links, directories and sparse files are not."""
        return self.type in _FILES

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.type == tarfile.DIRTYPE

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic or hard link."""
        return self.type in (tarfile.SYMTYPE, tarfile.LNKTYPE)


class TarDamage(Exception):
    """A tar that is damaged, or that exceeds a limit; the message says how.

    Attributes:
        member: The member whose content is cut or has an impossible size, if that is the damage.
    """

    def __init__(self, message: str, member: Member | None = None) -> None:
        super().__init__(message)
        self.member = member


@dataclass
class _Extensions:
    """What the headers before a member's own say about it."""

    headers: int = 0
    name: str | None = None
    size: int | None = None
    sparse: bool = False

    def count(self, at: int) -> None:
        """Count one header.

        Raises:
            TarDamage: If there are too many.
        """
        self.headers += 1
        if self.headers > MAX_HEADERS:
            raise TarDamage(f"more than {MAX_HEADERS} headers for one member at byte {at}")


@dataclass
class _Walk:
    """The place in a tar that is being read."""

    file: BinaryIO
    end: int
    """Bytes of the tar."""
    at: int = 0
    extensions: _Extensions = field(default_factory=_Extensions)

    def read(self, size: int) -> bytes:
        """Return `size` bytes, which must be there, and move to the next block.

        Raises:
            TarDamage: If the tar ends before.
        """
        self.file.seek(self.at)
        data = self.file.read(size) if size <= self.end - self.at else b""
        if len(data) < size:
            raise TarDamage("unexpected end of data")

        self.at += _padded(size)
        return data


def begins_as_tar(file: BinaryIO) -> bool:
    """Return whether the first block is a header, or the end mark of an empty tar."""
    file.seek(0)
    block = file.read(BLOCK)
    if block == bytes(BLOCK):
        return True

    try:
        decode_header(block)
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def decode_header(block: bytes) -> tarfile.TarInfo:
    """Decode a header of 512 bytes; a name that is not UTF-8 is escaped, so that any file can hold it.

    Raises:
        tarfile.HeaderError: If it is not a header.
    """
    return tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Yield a tar's members in order; each is whole in the tar. Contents are skipped.

    Raises:
        TarDamage: If the tar is damaged, exceeds a limit, or does not end as a tar ends.
    """
    walk = _Walk(file, end=file.seek(0, 2))
    while (header := _next_header(walk)) is not None:
        if header.type in _EXTENSIONS:
            _read_extension(walk, header)
            continue

        member = _member(walk, header)
        walk.extensions = _Extensions()
        if header.type not in _WITHOUT_CONTENT:
            walk.at += _padded(member.size)
        yield member

    _check_end(walk)


def _next_header(walk: _Walk) -> tarfile.TarInfo | None:
    """Return the next header, or None at the end mark.

    Raises:
        TarDamage: If there is neither.
    """
    start = walk.at
    if walk.end - start < BLOCK:
        raise TarDamage("the end mark is missing" if walk.end == start else "unexpected end of data")

    block = walk.read(BLOCK)
    if not any(block):
        return None
    try:
        header = decode_header(block)
    except (tarfile.HeaderError, ValueError):
        raise TarDamage(f"no valid header at byte {start}") from None

    # The map of GNU's sparse files continues behind the header.
    more = header.type == tarfile.GNUTYPE_SPARSE and block[482]
    while more:
        more = walk.read(BLOCK)[504]

    return header


def _read_extension(walk: _Walk, header: tarfile.TarInfo) -> None:
    """Read a header that describes the member behind it; the first of several headers decides.

    Raises:
        TarDamage: If the header is malformed or exceeds a limit.
    """
    start = walk.at - BLOCK
    extensions = walk.extensions
    extensions.count(start)
    if not 0 <= header.size <= MAX_HEADER_BYTES:
        raise TarDamage(f"a header of {header.size} bytes at byte {start}, more than {MAX_HEADER_BYTES}")

    content = walk.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        if extensions.name is None:
            extensions.name = _decoded(content.partition(b"\0")[0])
    elif header.type not in _LONG_NAMES:
        _read_pax(content, header.type, extensions, start)


def _read_pax(content: bytes, kind: bytes, extensions: _Extensions, start: int) -> None:
    """Read the records of a pax header: LENGTH KEY=VALUE and a line feed.

    Raises:
        TarDamage: If the records are malformed, or give names or sizes to all members that follow.
    """
    at = 0
    while at < len(content) and content[at]:
        record = _PAX_RECORD.match(content, at)
        stop = at + int(record[1]) if record else 0
        if record is None or not record.end() < stop <= len(content) or content[stop - 1 : stop] != b"\n":
            raise TarDamage(f"a malformed pax header at byte {start}")

        key = record[2]
        value = content[record.end() : stop - 1]
        at = stop

        if kind == tarfile.XGLTYPE:
            if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
                raise TarDamage(f"a pax header at byte {start} names all members")
        elif key == b"path" and extensions.name is None:
            extensions.name = _decoded(value).rstrip("/")
        elif key == b"size" and extensions.size is None:
            if not value.isdigit() or len(value) > 20:
                raise TarDamage(f"a malformed pax header at byte {start}")
            extensions.size = int(value)
        extensions.sparse |= key.startswith(b"GNU.sparse.")


def _member(walk: _Walk, header: tarfile.TarInfo) -> Member:
    """Return the member of a header, with what the headers before it say.

    Raises:
        TarDamage: If its name is too long, its size impossible, or its content cut.
    """
    extensions = walk.extensions
    name = header.name if extensions.name is None else extensions.name
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise TarDamage(f"a name of more than {MAX_NAME_BYTES} bytes at byte {walk.at - BLOCK}")

    member = Member(
        name.rstrip("/") if header.type == tarfile.DIRTYPE else name,
        tarfile.GNUTYPE_SPARSE if extensions.sparse else header.type,
        walk.at,
        header.size if extensions.size is None else extensions.size,
        extensions.headers > 0,
    )
    if member.size < 0:
        raise TarDamage(f"a member of {member.size} bytes", member)
    if header.type not in _WITHOUT_CONTENT and member.size > walk.end - walk.at:
        raise TarDamage("unexpected end of data", member)

    return member


def _check_end(walk: _Walk) -> None:
    """Check that nothing follows the end mark, which is a block of zeros.

    Raises:
        TarDamage: If something does.
    """
    walk.file.seek(walk.at)
    if any(walk.file.read(_BEHIND_END)):
        raise TarDamage(f"more data behind the end mark at byte {walk.at - BLOCK}")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _padded(size: int) -> int:
    """Return the bytes that a content of this size takes."""
    return -(-size // BLOCK) * BLOCK
