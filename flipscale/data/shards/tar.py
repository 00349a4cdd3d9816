"""Samples in a tar: which members belong together, at which offsets, and where damage ends them."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from flipscale.config import IMAGE_EXTENSIONS
from flipscale.data.quarantine import BadSample
from flipscale.data.shards.tar_members import Member, TarDamage, begins_as_tar, decode_header, read_members
from flipscale.errors import UserError

MAX_BYTES = {"image": 256 << 20, "caption": 1 << 20, "label": 1 << 20}
"""The most bytes of the members of a sample. Larger ones are not read; the sample is unusable."""
MAX_OTHER_BYTES = 16 << 20
"""The most bytes of a member of another kind, such as json."""

_OTHER_COLUMNS = {"txt": 1, "cls": 2}
"""The columns of a MEMBER row other than the image's, which is 0, by their extension."""

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
class Stray:
    """The number of members that belong to no sample, and the name of the first one."""

    count: int = 0
    first: str = ""

    def add(self, name: str, count: int = 1) -> None:
        """Count a member, or several of which it is the first."""
        self.first = self.first or name
        self.count += count


@dataclass
class Strays:
    """The members that belong to no sample."""

    images: Stray = field(default_factory=Stray)
    """Images whose names have another extension than those that are read, such as KEY.x.jpg."""
    others: Stray = field(default_factory=Stray)
    """Other files, whose key is that of no sample."""

    def __bool__(self) -> bool:
        return bool(self.images.count or self.others.count)


@dataclass(frozen=True)
class Scan:
    """The samples of one tar."""

    keys: list[str]
    members: np.ndarray  # MEMBER (samples,)
    damage: str | None  # why the tar ends before its last sample does; None if the tar is whole
    strays: Strays


def scan(file: BinaryIO, images: Collection[str] = IMAGE_EXTENSIONS) -> Scan:
    """Read a tar's headers; its contents are skipped.

    Args:
        file: The tar.
        images: The extensions of images.

    Raises:
        NotATar: If the file does not begin as a tar.
    """
    samples: list[Sample] = []
    strays = Strays()
    damage: str | None = None
    try:
        samples.extend(read_samples(file, images, strays))
    except TarDamage as error:
        if not samples and not begins_as_tar(file):
            raise NotATar(str(error)) from None
        damage = f"{error} after {len(samples)} samples"

    rows = np.array([sample.row for sample in samples], dtype=MEMBER)
    return Scan([sample.key for sample in samples], rows, damage, strays)


def read_samples(
    file: BinaryIO, images: Collection[str] = IMAGE_EXTENSIONS, strays: Strays | None = None
) -> Iterator[Sample]:
    """Yield each sample: consecutive members of one key with an image or a caption.

    The sample of a member that damage cuts is left out, since it may be incomplete.

    Args:
        file: The tar.
        images: The extensions of images.
        strays: Counts the members that belong to no sample.

    Raises:
        TarDamage: See `read_members`.
    """
    group = _Group(images, Strays() if strays is None else strays)
    try:
        for member in read_members(file):
            yield from group.add(member)
    except TarDamage as damage:
        # The key of a member that is cut shows whether the sample before it is whole.
        if damage.member is not None:
            yield from group.add(damage.member)
        raise

    yield from group.close()
    group.drop_pending()


class _Group:
    """The consecutive members of one key, up to the first that ends their sample."""

    def __init__(self, images: Collection[str], strays: Strays) -> None:
        self._columns = dict.fromkeys(images, 0) | _OTHER_COLUMNS
        self._strays = strays
        self._key = ""
        self._fields: set[int] = set()
        self._row = [0] * 6
        self._pending_key = ""
        self._pending = Stray()
        """Members of other kinds, whose key may be that of the next sample."""

    def add(self, member: Member) -> Iterator[Sample]:
        """Add a member; yield the sample that it ends."""
        key, extension = split_name(member.name)
        column = self._columns.get(extension)
        if not member.is_file:
            return
        if column is None:
            self._add_other(member.name, key, extension)
            return

        if key != self._key or column in self._fields:
            yield from self.close()
            self._key = key
        if key == self._pending_key:
            self._pending = Stray()

        self._fields.add(column)
        self._row[column] = member.offset
        self._row[3 + column] = min(max(member.size, 0), 2**32 - 1)

    def _add_other(self, name: str, key: str, extension: str) -> None:
        """Count a member that no column has, unless its key is that of the sample before or behind it."""
        if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            self._strays.images.add(name)
        elif key != self._key or not self._fields:
            if key != self._pending_key:
                self.drop_pending()
                self._pending_key = key
            self._pending.add(name)

    def drop_pending(self) -> None:
        """Count the pending members as those of no sample."""
        if self._pending.count:
            self._strays.others.add(self._pending.first, self._pending.count)
        self._pending = Stray()

    def close(self) -> Iterator[Sample]:
        """Yield the sample, if there is an image or a caption, and begin another one."""
        if self._fields & {0, 1}:
            yield Sample(self._key, tuple(self._row))
        elif self._fields:
            self._strays.others.add(f"{self._key}.cls")

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
