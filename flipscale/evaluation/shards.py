"""Evaluation sets in webdataset shards: named one by one, or in a directory of CLIP_benchmark's converter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flipscale.data.quarantine import BadSample
from flipscale.data.shards.index import expand_shards
from flipscale.data.shards.tar import IMAGE_EXTENSIONS, check_size, kind_of, split_name
from flipscale.data.shards.tar_members import TarDamage, read_members
from flipscale.errors import UserError
from flipscale.evaluation.samples import RawSample, ShardMember, incomplete_shard
from flipscale.evaluation.set_types import SampleSource, SetType

SPLIT_SHARD_COUNT = "nshards.txt"
"""The file that CLIP_benchmark's converter writes next to the shards of each split."""

_SHARD_COUNT = Path("test", SPLIT_SHARD_COUNT)
_TARGETS = ("cls", "txt", "npy")


def read_shards(pattern: str) -> Iterator[RawSample]:
    """Yield the samples of webdataset tars in order; their images are not read yet.

    Args:
        pattern: Paths with brace expansion, joined by `::`.

    Raises:
        UserError: If a shard is missing or incomplete, since a score over part of a set means nothing.
    """
    for path in existing_shards(pattern):
        try:
            yield from _read_shard(path)
        except (TarDamage, BadSample, OSError) as error:
            raise incomplete_shard(path, error) from error


def existing_shards(pattern: str) -> list[str]:
    """Return the paths of a pattern.

    Raises:
        UserError: If a path is not a file.
    """
    paths = expand_shards(pattern)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"the evaluation shard {path} is not a file; check the pattern {pattern!r}")
    return paths


def is_converted(data: str) -> bool:
    """Return whether `data` is a directory of CLIP_benchmark's converter."""
    return Path(data, _SHARD_COUNT).is_file()


def shards_of(data: str) -> str:
    """Return the shard pattern of a directory of CLIP_benchmark's converter; any other `data` unchanged.

    Raises:
        UserError: If a directory does not say how many shards it has.
    """
    if not Path(data).is_dir():
        return data

    listed = Path(data, _SHARD_COUNT)
    text = listed.read_text(errors="replace").strip() if listed.is_file() else ""
    if not text.isdecimal() or not int(text):
        raise UserError(
            f"{data} is a directory without {_SHARD_COUNT}, which gives the number of its shards; name the "
            "shards, as in DIRECTORY/{0..9}.tar"
        )
    return "::".join(str(Path(data, "test", f"{number}.tar")) for number in range(int(text)))


def open_shards(data: str) -> SampleSource:
    """Return the set in these shards; no file is opened before its samples are read."""

    def check() -> None:
        existing_shards(shards_of(data))

    return SampleSource(lambda: read_shards(shards_of(data)), check)


CONVERTED_SHARDS = SetType("directory of CLIP_benchmark's converter", is_converted, open_shards)
SHARDS = SetType("webdataset shards", lambda data: True, open_shards)


def _read_shard(path: str) -> Iterator[RawSample]:
    """Yield the samples of one tar: members of one key that follow each other."""
    current: _Members | None = None
    for key, extension, content in _members(path):
        kind = "image" if extension in IMAGE_EXTENSIONS else extension
        if current is None or key != current.key or current.has(kind):
            if current is not None:
                yield current.sample(path)
            current = _Members(key)
        current.add(kind, content)

    if current is not None:
        yield current.sample(path)


class _Members:
    """The members of a sample that have been read so far."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._image: ShardMember | None = None
        self._texts: dict[str, bytes] = {}

    def has(self, kind: str) -> bool:
        return kind in self._texts or (kind == "image" and self._image is not None)

    def add(self, kind: str, content: bytes | ShardMember) -> None:
        if isinstance(content, ShardMember):
            self._image = content
        else:
            self._texts[kind] = content

    def sample(self, path: str) -> RawSample:
        texts = self._texts
        name = f"{os.path.basename(path)}/{self.key}"
        return RawSample(name, self._image, texts.get("cls"), texts.get("txt"), texts.get("npy"))


def _members(path: str) -> Iterator[tuple[str, str, bytes | ShardMember]]:
    """Yield (key, extension, content) of the image, label and caption members; images are not read."""
    with open(path, "rb") as file:
        for member in read_members(file):
            key, extension = split_name(member.name)
            if not member.is_file or extension not in (*IMAGE_EXTENSIONS, *_TARGETS):
                continue
            if extension in IMAGE_EXTENSIONS:
                yield key, extension, ShardMember(path, member.offset, member.size)
                continue

            check_size(kind_of(extension), member.size)
            file.seek(member.offset)
            content = file.read(member.size)
            if len(content) < member.size:
                raise TarDamage("unexpected end of data")
            yield key, extension, content
