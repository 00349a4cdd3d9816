"""Samples in a tar: which members belong together, at which offsets, and where damage ends them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
DAMAGE = (tarfile.ReadError, ValueError, OverflowError, MemoryError)
"""The errors that a damaged tar causes; tarfile raises the latter three for absurd lengths in a header."""

FIELDS = dict.fromkeys(IMAGE_EXTENSIONS, 0) | {"txt": 1, "cls": 2}
"""The column of a MEMBER row that each extension belongs to."""

MEMBER = np.dtype(
    [
        ("image", "<u8"),  # byte offset of the image in the tar
        ("text", "<u8"),
        ("cls", "<u8"),
        ("image_bytes", "<u4"),  # 0 bytes: the sample has no such member
        ("text_bytes", "<u4"),
        ("cls_bytes", "<u4"),
    ]
)
"""One row of an index's members table."""


class NotATar(Exception):
    """A file that does not begin with a tar header; the message says why."""


class Sample(NamedTuple):
    """The key of a sample, and the offsets and sizes of its members."""

    key: str
    row: tuple[int, ...]  # as MEMBER


@dataclass(frozen=True)
class Scan:
    """The samples of one tar."""

    keys: list[str]
    members: np.ndarray  # MEMBER (samples,)
    damage: str | None  # why the tar ends before its last sample does; None if the tar is whole


def scan(file: BinaryIO) -> Scan:
    """Read a tar's headers; its contents are skipped.

    Raises:
        NotATar: If the file does not begin as a tar.
    """
    samples: list[Sample] = []
    damage: str | None = None
    try:
        samples.extend(read_samples(file))
    except DAMAGE as error:
        if not samples and not _begins_as_tar(file):
            raise NotATar(str(error)) from None
        damage = f"{error} after {len(samples)} samples"

    rows = np.array([sample.row for sample in samples], dtype=MEMBER)
    return Scan([sample.key for sample in samples], rows, damage)


def open_tar(file: BinaryIO) -> tarfile.TarFile:
    """Open an uncompressed tar; names that are not UTF-8 are escaped, so that any file can hold them."""
    return tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace")


def _begins_as_tar(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        with open_tar(file):
            return True
    except DAMAGE:
        return False


def read_samples(file: BinaryIO) -> Iterator[Sample]:
    """Yield each sample: consecutive members of one key with an image or a caption.

    The sample of a member that damage cuts is left out, since it may be incomplete.

    Raises:
        tarfile.ReadError: See `read_members`.
    """
    current: str | None = None
    fields: set[int] = set()
    row = [0] * 6

    for member in read_members(file):
        key, extension = split_name(member.name)
        field = FIELDS.get(extension)
        if field is None or not member.isreg() or member.issparse():
            continue

        if key != current or field in fields:
            if current is not None and fields & {0, 1}:
                yield Sample(current, tuple(row))
            current = key
            fields.clear()
            row = [0] * 6

        fields.add(field)
        row[field] = member.offset_data
        row[3 + field] = min(member.size, 2**32 - 1)

    if current is not None and fields & {0, 1}:
        yield Sample(current, tuple(row))


def read_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield a tar's members in order.

    A damaged member is still yielded before the error is raised: its key ends the previous sample.

    Raises:
        tarfile.ReadError: If the tar is damaged, or does not end as a tar ends.
    """
    size = file.seek(0, 2)
    file.seek(0)

    with open_tar(file) as tar:
        for member in tar:
            yield member
            whole = not member.isreg() or member.issparse() or 0 <= member.size <= size - member.offset_data
            if not whole:
                raise tarfile.ReadError("unexpected end of data")

        _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Check that `tar` stopped at its end mark, a block of zeros.

    tarfile itself interprets a header that is cut or overwritten as the end of the archive.

    Raises:
        tarfile.ReadError: If it stopped elsewhere.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    mark = tar.fileobj.read(tarfile.BLOCKSIZE)
    rest = tar.fileobj.read(1 << 20)

    if len(mark) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end mark is missing")
    if any(mark):
        raise tarfile.ReadError(f"no valid header at byte {tar.offset}")
    if any(rest):
        raise tarfile.ReadError(f"more data behind the end mark at byte {tar.offset}")


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name as webdataset does, at the first dot of the last path part.

    Returns:
        The key, and the extension in lower case.
    """
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")

    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def key_in_header(header: bytes) -> str | None:
    """Return the key in a member's 512-byte header, or None if the header does not hold the whole name."""
    with suppress(tarfile.HeaderError, *DAMAGE):
        name = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace").name
        field = header[:100].rstrip(b"\0")

        # GNU and pax headers cut a long name here, or replace characters beyond ASCII by question marks.
        if len(field) < 100 and b"?" not in field:
            return split_name(name)[0]

    return None
