"""Samples in a tar: which members belong together, at which offsets, and where damage ends them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from flipscale.data.quarantine import BadSample
from flipscale.data.shards.tar_members import Member, TarDamage, begins_as_tar, decode_header, read_members
from flipscale.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

MAX_BYTES = {"image": 256 << 20, "caption": 1 << 20, "label": 1 << 20}
"""The most bytes of the members of a sample. Larger ones are not read; the sample is unusable."""
MAX_OTHER_BYTES = 16 << 20
"""The most bytes of a member of another kind, such as json."""

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


def not_a_tar(path: str, error: NotATar) -> UserError:
    """Return the error for a shard that is not a tar."""
    return UserError(
        f"{path} is not an uncompressed tar file ({error}); name webdataset shards as in "
        "/data/{0000..0099}.tar, and decompress them"
    )


class Sample(NamedTuple):
    """The key of a sample, and the offsets and sizes of its members."""

    key: str
    row: tuple[int, ...]  # as MEMBER


@dataclass
class Strays:
    """The images that belong to no sample, since their names have more than one dot: KEY.x.jpg."""

    count: int = 0
    first: str = ""
    """The name of the first one."""

    def add(self, name: str, extension: str) -> None:
        """Count a member if it is such an image."""
        if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            self.first = self.first or name
            self.count += 1


@dataclass(frozen=True)
class Scan:
    """The samples of one tar."""

    keys: list[str]
    members: np.ndarray  # MEMBER (samples,)
    damage: str | None  # why the tar ends before its last sample does; None if the tar is whole
    strays: Strays


def scan(file: BinaryIO) -> Scan:
    """Read a tar's headers; its contents are skipped.

    Raises:
        NotATar: If the file does not begin as a tar.
    """
    samples: list[Sample] = []
    strays = Strays()
    damage: str | None = None
    try:
        samples.extend(read_samples(file, strays))
    except TarDamage as error:
        if not samples and not begins_as_tar(file):
            raise NotATar(str(error)) from None
        damage = f"{error} after {len(samples)} samples"

    rows = np.array([sample.row for sample in samples], dtype=MEMBER)
    return Scan([sample.key for sample in samples], rows, damage, strays)


def read_samples(file: BinaryIO, strays: Strays | None = None) -> Iterator[Sample]:
    """Yield each sample: consecutive members of one key with an image or a caption.

    The sample of a member that damage cuts is left out, since it may be incomplete.

    Args:
        file: The tar.
        strays: Counts the images that belong to no sample.

    Raises:
        TarDamage: See `read_members`.
    """
    group = _Group(strays or Strays())
    try:
        for member in read_members(file):
            yield from group.add(member)
    except TarDamage as damage:
        # The key of a member that is cut shows whether the sample before it is whole.
        if damage.member is not None:
            yield from group.add(damage.member)
        raise

    yield from group.close()


class _Group:
    """The consecutive members of one key, up to the first that ends their sample."""

    def __init__(self, strays: Strays) -> None:
        self._strays = strays
        self._key = ""
        self._fields: set[int] = set()
        self._row = [0] * 6

    def add(self, member: Member) -> Iterator[Sample]:
        """Add a member; yield the sample that it ends."""
        key, extension = split_name(member.name)
        field = FIELDS.get(extension)
        if not member.is_file:
            return
        if field is None:
            self._strays.add(member.name, extension)
            return

        if key != self._key or field in self._fields:
            yield from self.close()
            self._key = key

        self._fields.add(field)
        self._row[field] = member.offset
        self._row[3 + field] = min(max(member.size, 0), 2**32 - 1)

    def close(self) -> Iterator[Sample]:
        """Yield the sample, if there is an image or a caption, and begin another one."""
        if self._fields & {0, 1}:
            yield Sample(self._key, tuple(self._row))

        self._fields.clear()
        self._row = [0] * 6


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
    with suppress(tarfile.HeaderError, ValueError):
        name = decode_header(header).name
        field = header[:100].rstrip(b"\0")

        # GNU and pax headers cut a long name here, or replace characters beyond ASCII by question marks.
        if len(field) < 100 and b"?" not in field:
            return split_name(name)[0]

    return None


def kind_of(extension: str) -> str:
    """Return the kind of a member: image, caption, label, or its extension."""
    if extension in IMAGE_EXTENSIONS:
        return "image"
    return {"txt": "caption", "cls": "label"}.get(extension, extension)


def check_size(kind: str, size: int) -> None:
    """Check that a member is small enough to be read.

    Args:
        kind: Its `kind_of`.
        size: Its bytes.

    Raises:
        BadSample: If it is not.
    """
    limit = MAX_BYTES.get(kind, MAX_OTHER_BYTES)
    if size > limit:
        raise BadSample(f"the {kind} has {size} bytes, more than {limit}")
