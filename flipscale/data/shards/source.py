"""The members of an index's samples as bytes, whatever the storage of the shards."""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache, partial
from typing import Literal

import numpy as np

from flipscale.addresses import without_secrets, without_signature
from flipscale.data.quarantine import BadSample
from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.index import Index, Shard
from flipscale.data.shards.index_directory import table_of_shard
from flipscale.data.shards.members import SampleMembers, members_of_sample
from flipscale.data.shards.shard_tables import load_table, row_fits, save_table
from flipscale.data.shards.storage import Storage, is_command
from flipscale.data.shards.tar import NotATar, check_size, key_in_header, not_a_tar, scan
from flipscale.data.shards.tar_members import BLOCK
from flipscale.errors import UserError

_TABLES = 256  # shards whose members stay in memory, for an index without a members table
_log = logging.getLogger(__name__)

Column = Literal["image", "text", "cls"]
"""The columns of the members table."""

_KINDS: dict[Column, str] = {"image": "image", "text": "caption", "cls": "label"}


class ShardSource:
    """The reader of any sample's members. Each loader worker has its own copy.

    Args:
        index: Index of the shards.
        storage: Reads the shards; default: without commands, with the default time limits.
        cache: Cache on a local disk, if any.

    Raises:
        UserError: If a shard is the output of a command and there is no cache.
    """

    def __init__(self, index: Index, storage: Storage | None = None, cache: BlockCache | None = None) -> None:
        self.index = index
        self._storage = storage or Storage()
        self._cache = cache
        self._tables: OrderedDict[int, np.ndarray] = OrderedDict()
        self._reasons: dict[int, str] = {}  # why a shard without a members table ends early

        for shard in index.shards:
            if is_command(shard.path) and cache is None:
                raise UserError(
                    f"the shard {shard.path!r} is a command, whose output cannot be read at any place; "
                    "set data.cache: {directory, size} to hold it"
                )

    def member(self, shard: int, ordinal: int) -> np.ndarray:
        """Return the offsets and sizes of a sample's members, as a 0-d array of MEMBER.

        Raises:
            BadSample: If the shard ends before a sample that its statistics count.
            UserError: If the index names places that the shard does not have.
        """
        if self.index.has_members:
            row = self.index.members[self.index.first_rows[shard] + ordinal]
            if not row_fits(row.item(), self._of(shard).bytes):
                raise UserError(
                    f"the index in {self.index.directory} is damaged: sample {ordinal} of "
                    f"{self._of(shard).path} is not within the shard; make it again with "
                    "`flipscale data index`"
                )
            return row

        table = self._table(shard)
        if ordinal >= len(table):
            reason = self._reasons.get(
                shard, f"it holds {len(table)} samples and not {self._of(shard).samples}"
            )
            raise BadSample(f"the shard ends before this sample: {reason}")

        return table[ordinal]

    def content(self, shard: int, ordinal: int, column: Column) -> bytes:
        """Return the image, caption or label of a sample; see `checked_content`."""
        return self.checked_content(shard, ordinal, column)[0]

    def checked_content(self, shard: int, ordinal: int, column: Column) -> tuple[bytes, int]:
        """Return the image, caption or label of a sample with its CRC-32; nothing if the sample has none.

        Raises:
            BadSample: If the shard ends before the sample, or the member is too large.
            DataReadError: If the shard cannot be read, after retries.
            UserError: If the shard changed since it was indexed, or the content has another checksum.
        """
        row = self.member(shard, ordinal)
        size = int(row[f"{column}_bytes"])
        check_size(_KINDS[column], size)
        data = self.read(shard, int(row[column]), size)

        checksum = zlib.crc32(data)
        known = None if column == "cls" else self.index.checksums
        if known is not None and checksum != int(known[self.index.first_rows[shard] + ordinal][column]):
            raise UserError(
                f"the {_KINDS[column]} of sample {ordinal} of {self._of(shard).path} is not the one that was "
                "indexed (its checksum differs); restore the shard, or make the index again for a new run"
            )
        return data, checksum

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return part of a shard.

        Raises:
            DataReadError: If the shard cannot be read, after retries.
            UserError: If the shard changed since it was indexed.
        """
        entry = self._of(shard)
        data = self._read(entry, offset, size)
        if len(data) < size:
            raise UserError(f"{entry.path} became shorter since the index was made; make the index again")

        return data

    def members(self, shard: int, ordinal: int) -> SampleMembers:
        """Return all members of a sample by their extension, including those that the index does not know."""
        entry = self._of(shard)
        before = self.member(shard, ordinal - 1) if ordinal else None
        behind = None
        if ordinal + 1 < entry.samples:
            with suppress(BadSample):  # the shard ends before its count
                behind = self.member(shard, ordinal + 1)

        row = self.member(shard, ordinal)
        return members_of_sample(partial(self.read, shard), row, before, behind, entry.bytes)

    def key(self, shard: int, ordinal: int) -> str:
        """Return the key of a sample, from the header of its member; "?" if it cannot be read."""
        with suppress(BadSample, UserError):
            row = self.member(shard, ordinal)
            offset = int(row["image"] or row["text"]) - BLOCK
            key = key_in_header(self.read(shard, offset, BLOCK))
            if key is not None:
                return key

            keys = _keys(self._storage, self._of(shard).path, self.index.images)
            return (keys or ["?"] * (ordinal + 1))[ordinal]

        return "?"

    def _of(self, shard: int) -> Shard:
        return self.index.shards[shard]

    def _read(self, entry: Shard, offset: int, size: int) -> bytes:
        if self._cache is None:
            return self._storage.read(entry.path, offset, size, entry.status)

        name = f"{without_signature(entry.path)}\n{entry.bytes}\n{entry.version}"
        if is_command(entry.path):
            return self._read_output(entry, name, offset, size)

        return self._cache.read(
            name,
            offset,
            size,
            entry.bytes,
            lambda at, count: self._storage.read(entry.path, at, count, entry.status),
        )

    def _read_output(self, entry: Shard, name: str, offset: int, size: int) -> bytes:
        """Read from a command's output; run the command if the cache does not have the range."""
        assert self._cache is not None
        lock = os.open(self._cache.directory / "commands.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not self._cache.holds(name, offset, size, entry.bytes):
                fcntl.flock(lock, fcntl.LOCK_EX)  # so that the workers do not all run the same command

            # Look again: another worker may have filled the cache while this one waited for the lock.
            if not self._cache.holds(name, offset, size, entry.bytes):
                with self._storage.open(entry.path) as output:
                    if output.seek(0, os.SEEK_END) != entry.bytes:
                        raise UserError(
                            f"{entry.path} writes another shard than when the index was made; make it again"
                        )
                    output.seek(0)
                    self._cache.fill(name, output)
                    output.seek(offset)
                    return output.read(size)
        finally:
            os.close(lock)

        def again(at: int, count: int) -> bytes:  # a block can be evicted meanwhile
            with self._storage.open(entry.path) as output:
                output.seek(at)
                return output.read(count)

        return self._cache.read(name, offset, size, entry.bytes, again)

    def _table(self, shard: int) -> np.ndarray:
        """Return a shard's members from its headers; the index directory keeps them for other processes."""
        if shard not in self._tables:
            kept = table_of_shard(self.index.directory, shard)
            table = load_table(kept, self._of(shard).bytes)
            if table is None:
                table = self._scan(shard)
                save_table(kept, *table)

            self._tables[shard], reason = table
            if reason:
                self._reasons[shard] = reason
            if len(self._tables) > _TABLES:
                self._reasons.pop(self._tables.popitem(last=False)[0], None)

        self._tables.move_to_end(shard)
        return self._tables[shard]

    def _scan(self, shard: int) -> tuple[np.ndarray, str]:
        """Return a shard's members, and why it ends early; "" if it is whole."""
        entry = self._of(shard)
        try:
            with self._storage.open(entry.path) as file:
                scanned = scan(file, self.index.images)
        except NotATar as error:
            raise not_a_tar(entry.path, error) from None

        if len(scanned.members) > entry.samples:
            _log.warning(
                "%s holds %d samples, but the index counts %d; the others are left out",
                without_secrets(entry.path),
                len(scanned.members),
                entry.samples,
            )

        return scanned.members, scanned.damage or ""


@lru_cache(maxsize=16)  # a shard with one bad sample has more; 10,000 headers take a second
def _keys(storage: Storage, path: str, images: tuple[str, ...]) -> list[str]:
    with suppress(NotATar, OSError), storage.open(path) as file:
        return scan(file, images).keys
    return []
