"""The index of a training set: every shard's samples, and the offsets of each sample's members in the tar.

An index is a directory. `index.json` holds the shards' paths, sample counts, sizes and versions, one column
each; it is written last. `members.bin` holds one MEMBER row per sample, so that any sample is one read at a
known offset. An index without `members.bin` stays small: the members of a shard are found on its first read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from braceexpand import braceexpand

from flipscale.addresses import without_signature
from flipscale.config import IMAGE_EXTENSIONS
from flipscale.data.quarantine import BadRecord
from flipscale.data.shards.brace_patterns import check_size
from flipscale.data.shards.checksums import SampleChecksums, open_checksums, shard_checksums
from flipscale.data.shards.index_directory import TABLE
from flipscale.data.shards.remote import Status
from flipscale.data.shards.storage import Storage, is_command, is_remote
from flipscale.data.shards.tar import MEMBER
from flipscale.errors import UserError, words_of
from flipscale.formatting import format_value

_VERIFIED_AT_ONCE = 32  # shards whose size and version are requested at the same time
_VERIFIED_REMOTE = 1000  # remote shards that are checked before a start; reading checks the others


class Shard(NamedTuple):
    """The entry of one shard in the index."""

    path: str
    samples: int
    bytes: int
    version: str  # modification time in ns, or the ETag of remote storage

    @property
    def status(self) -> Status:
        """The size and version that the storage should report."""
        return Status(self.bytes, self.version)


@dataclass(frozen=True)
class Damage:
    """A shard that ends before its last sample does. The index has the samples before that point."""

    path: str
    samples: int
    reason: str


@dataclass(frozen=True)
class Index:
    """The index of a training set, as stored in its directory."""

    directory: Path
    shards: tuple[Shard, ...]
    damaged: tuple[Damage, ...]
    has_members: bool = True
    """Whether the directory holds the members table."""
    images: tuple[str, ...] = IMAGE_EXTENSIONS
    """The extensions of the members that are images."""

    @cached_property
    def counts(self) -> np.ndarray:
        """The samples of each shard, int64 (shards,)."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def samples(self) -> int:
        """The samples of all shards."""
        return int(self.counts.sum())

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the data: SHA-256 over names (without folders), sizes and counts of the shards.

        Extensions of images are part of it unless they are the usual ones.
        """
        identity: list[object] = [[shard_name(s.path), s.bytes, s.samples] for s in self.shards]
        if self.images != IMAGE_EXTENSIONS:
            identity.append(sorted(self.images))
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @cached_property
    def members(self) -> np.memmap:
        """The members table, (samples,) of MEMBER; only if `has_members`."""
        return np.memmap(self.directory / TABLE, dtype=MEMBER, mode="r", shape=(self.samples,))

    @cached_property
    def checksums(self) -> np.ndarray | None:
        """The checksums of the samples, (samples,) of CHECKSUM; None if the index has none."""
        if not self.has_members:
            return None
        return open_checksums(self.directory, self.fingerprint, self.samples)

    def sample_checksums(self) -> SampleChecksums | None:
        """Return the checksums of samples by shard and ordinal; None if the index has none."""
        if self.checksums is None:
            return None
        return SampleChecksums(self.directory, self.fingerprint, self.first_rows, self.samples)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """The number of each shard's first sample in the set, (shards,); also its row in `members`."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def located(self, paths: list[str], pattern: str) -> Index:
        """Return this index for the shards at `paths`, whose signatures may be others than in the index.

        Args:
            paths: The shards that `pattern` names.
            pattern: `data.train` of the job, for the message.

        Raises:
            UserError: If it is an index of other shards.
        """
        if not self.is_of(paths):
            raise UserError(
                f"the index in {self.directory} is of {len(self.shards)} shards from {self.shards[0].path} "
                f"on, not of data.train = {pattern}; make it for these with `flipscale data index`"
            )

        new = {shard.path: path for shard, path in zip(self.shards, paths, strict=True)}
        shards = tuple(shard._replace(path=new[shard.path]) for shard in self.shards)
        damaged = tuple(replace(damage, path=new[damage.path]) for damage in self.damaged)
        return replace(self, shards=shards, damaged=damaged)

    def check_images(self, images: Sequence[str]) -> None:
        """Check that the images have these extensions, in any order.

        Raises:
            UserError: If it is an index of other images.
        """
        if set(self.images) != set(images):
            raise UserError(
                f"the index in {self.directory} is of images with the extensions {', '.join(self.images)}, "
                f"not of data.images = {', '.join(images)}; make it for these with "
                "`flipscale data index --images`"
            )

    def is_of(self, paths: list[str]) -> bool:
        """Return whether this is the index of the shards at `paths`, whatever their signatures."""
        return [without_signature(s.path) for s in self.shards] == [without_signature(p) for p in paths]

    def damage_records(self) -> list[BadRecord]:
        """Return a quarantine record for each shard that lost samples at its end."""
        numbers = {shard.path: number for number, shard in enumerate(self.shards)}
        return [
            BadRecord(
                numbers[damage.path], damage.samples, damage.path, "", f"the shard is cut: {damage.reason}"
            )
            for damage in self.damaged
        ]

    def find(self, number: int) -> tuple[Shard, int]:
        """Return the shard of sample `number` of the set, and its ordinal there.

        Raises:
            IndexError: If the set has fewer samples.
        """
        if not 0 <= number < self.samples:
            raise IndexError(f"there is no sample {number}; the set has {self.samples}")

        shard = int(np.searchsorted(self.first_rows, number, side="right")) - 1
        return self.shards[shard], number - int(self.first_rows[shard])

    def verify(self, storage: Storage | None = None, only: Sequence[Shard] | None = None) -> None:
        """Check that the shards exist and did not change since they were indexed.

        A local shard of the same size but another version may have been staged again: its content decides,
        if the index has checksums. If there are many remote shards, only an evenly spaced choice is checked.
        `Storage.read` rejects the others when they are read.

        Args:
            storage: Reports the size and version of a shard.
            only: The shards to check; default: all.

        Raises:
            UserError: If a shard is missing or changed; the message names it.
        """
        storage = storage or Storage()

        def problem(shard: Shard) -> str | None:
            try:
                status = storage.status(shard.path)
            except OSError as error:
                return f"{shard.path} cannot be opened ({words_of(error)})"
            same = status == shard.status or self._has_same_content(shard, status)
            return None if same else f"{shard.path} changed since the index was made"

        shards = self.shards if only is None else only
        remote = [shard for shard in shards if is_remote(shard.path) and not is_command(shard.path)]
        chosen = remote[:: -(-len(remote) // _VERIFIED_REMOTE) or 1]
        local = [shard for shard in shards if not is_remote(shard.path)]

        with ThreadPoolExecutor(_VERIFIED_AT_ONCE) as pool:
            problems = [p for p in pool.map(problem, [*local, *chosen]) if p]

        if problems:
            more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
            raise UserError(
                f"{problems[0]}{more}; restore the shards, or make the index in {self.directory} again "
                "with `flipscale data index`"
            )

    def _has_same_content(self, shard: Shard, status: Status) -> bool:
        """Return whether a local shard with another version has the samples that were indexed.

        Raises:
            OSError: If it cannot be read.
        """
        if status.bytes != shard.bytes or is_remote(shard.path) or self.checksums is None:
            return False

        first = int(self.first_rows[self.shards.index(shard)])
        rows = slice(first, first + shard.samples)
        return shard_checksums(shard.path, self.members[rows]).tobytes() == self.checksums[rows].tobytes()


def shard_name(path: str) -> str:
    """Return the last part of a path or address, without the signature of an address."""
    return os.path.basename(urlsplit(path).path if is_remote(path) and not is_command(path) else path)


def expand_shards(pattern: str) -> list[str]:
    """Expand braces and `::` to shard paths, in order.

    Raises:
        UserError: If braces are unbalanced or stand for too many paths, or a path is empty or occurs twice.
    """
    return list(_expanded(pattern))


@lru_cache(maxsize=4)  # a start and a submission ask several times for the same tens of thousands of paths
def _expanded(pattern: str) -> tuple[str, ...]:
    parts = pattern.split("::")
    check_size(parts)

    paths: list[str] = []
    for part in parts:
        try:
            paths.extend(braceexpand(part))
        except ValueError:  # UnbalancedBracesError
            raise UserError(
                f"the shard pattern {format_value(part)} has unbalanced braces; give every {{ its }}, as in "
                "{0000..0099}.tar"
            ) from None

    if "" in paths:
        raise UserError(
            f"the shard pattern {format_value(pattern)} has an empty part; name shards, as in "
            "/data/{0000..0099}.tar (in a job: data.train)"
        )
    repeated = [path for path, times in Counter(paths).items() if times > 1]
    if repeated:
        raise UserError(
            f"the shard pattern {format_value(pattern)} names {repeated[0]} more than once; name it once"
        )

    return tuple(paths)
