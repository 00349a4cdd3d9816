"""index.json: the columns of an index on disk, read strictly, since an index may come from anybody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flipscale.config import IMAGE_EXTENSIONS, parse_image_extensions
from flipscale.data.shards.index import Damage, Index, Shard, expand_shards
from flipscale.data.shards.index_directory import INDEX, TABLE
from flipscale.data.shards.tar import MEMBER
from flipscale.documents import read_object, typed
from flipscale.errors import UserError, words_of
from flipscale.files import write_durably

VERSION = 2
_FIX = "make it again with `flipscale data index`"

_Count = Annotated[int, Field(ge=0, le=1 << 48)]
_Bytes = Annotated[int, Field(ge=0, le=1 << 62)]


@dataclass(frozen=True)
class _Document:
    """The content of index.json, with one column per field of `Shard`."""

    version: int
    fingerprint: str
    members: bool
    """Whether the directory holds the members table."""
    paths: list[str]
    samples: list[_Count]
    bytes: list[_Bytes]
    versions: list[str]
    damaged: list[tuple[str, _Count, str]]
    """Path, samples and reason of each damaged shard."""
    images: list[str] = field(default_factory=lambda: list(IMAGE_EXTENSIONS))
    """The extensions of images; older indices have the usual ones."""

    @classmethod
    def of_index(cls, index: Index) -> _Document:
        return cls(
            VERSION,
            index.fingerprint,
            index.has_members,
            [shard.path for shard in index.shards],
            [shard.samples for shard in index.shards],
            [shard.bytes for shard in index.shards],
            [shard.version for shard in index.shards],
            [(damage.path, damage.samples, damage.reason) for damage in index.damaged],
            list(index.images),
        )

    def index(self, directory: Path) -> Index:
        """Return the index that the columns describe.

        Raises:
            ValueError: If they contradict each other.
        """
        columns = (self.paths, self.samples, self.bytes, self.versions)
        if len({len(column) for column in columns}) != 1:
            raise ValueError("its columns have different lengths")
        if any("\0" in path for path in self.paths):
            raise ValueError("a path in it has a NUL")
        if not {path for path, _, _ in self.damaged} <= set(self.paths):
            raise ValueError("a damaged shard in it is not among its shards")

        shards = tuple(map(Shard._make, zip(*columns, strict=True)))
        damaged = tuple(Damage(*damage) for damage in self.damaged)
        index = Index(directory, shards, damaged, self.members, parse_image_extensions(self.images))
        if not sum(self.samples):
            raise ValueError("it has no samples")
        if index.fingerprint != self.fingerprint:
            raise ValueError("its fingerprint is that of other shards")

        return index


def write_index(index: Index) -> None:
    """Write index.json, which turns the directory into an index."""
    # Not asdict(), which copies every element of the columns.
    write_durably(index.directory / INDEX, json.dumps(vars(_Document.of_index(index))))


def is_current(directory: Path) -> bool:
    """Return whether the directory holds an index of this version, damaged or not."""
    try:
        return read_object(directory / INDEX).get("version") == VERSION
    except (OSError, UserError):
        return False


def load_index(directory: Path) -> Index:
    """Load the index in a directory.

    Raises:
        UserError: If the index is missing, its version is another one, or it is damaged.
    """
    try:
        content = read_object(directory / INDEX, _FIX)
        # Check the version first: another version has other columns.
        if content.get("version", VERSION) != VERSION:
            raise UserError(
                f"the index in {directory} has version {str(content['version'])[:80]}, not {VERSION}; {_FIX}"
            )

        index = typed(_Document, content).index(directory)
        size = (directory / TABLE).stat().st_size if index.has_members else None
    except FileNotFoundError:
        raise UserError(f"there is no index in {directory}; make one with `flipscale data index`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the index in {directory} cannot be read ({words_of(error)}); {_FIX}") from None

    if size is not None and size != index.samples * MEMBER.itemsize:
        raise UserError(f"the index in {directory} is damaged: members.bin has the wrong size; {_FIX}")

    return index


def load_located(directory: Path, pattern: str, images: Sequence[str]) -> Index:
    """Load the index in a directory for the shards that a pattern names; see `Index.located`.

    Args:
        directory: The directory of the index.
        pattern: The shards, as in `data.train`.
        images: The extensions of images, as in `data.images`.

    Raises:
        UserError: As `load_index` does, and if it is the index of other shards or images.
    """
    index = load_index(directory)
    index.check_images(images)
    return index.located(expand_shards(pattern), pattern)


def is_index_of(directory: Path, paths: list[str], images: Sequence[str]) -> bool:
    """Return whether a directory holds a whole index of this version of these shards and images."""
    try:
        index = load_index(directory)
        index.check_images(images)
        return index.is_of(paths)
    except UserError:
        return False
