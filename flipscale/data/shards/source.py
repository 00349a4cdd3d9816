"""The members of an index's samples as bytes, wherever the shards lie."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import tarfile
import tempfile
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from flipscale.data.quarantine import BadSample
from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.index import Index, Shard
from flipscale.data.shards.storage import Storage, is_command
from flipscale.data.shards.tar import DAMAGE, NotATar, key_in_header, open_tar, scan, split_name
from flipscale.errors import UserError

_TABLES = 256  # shards whose members are held, of an index without a members table
_HEADER = 512  # bytes, as is the unit in which a tar is laid out
_BEHIND_LAST = 1 << 20  # bytes behind a shard's last image or caption where its other members are looked for
_log = logging.getLogger(__name__)


class ShardSource:
    """Reads any sample's members; each loader worker has its own copy.

    Raises UserError for `pipe:` shards that are not allowed, or that no cache is there for.
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
        """Where the members of a sample lie: one row of MEMBER, 0-d.

        Raises BadSample where the shard ends before a sample that its statistics count.
        """
        if self.index.has_members:
            return self.index.members[self.index.first_rows[shard] + ordinal]
        table = self._table(shard)
        if ordinal >= len(table):
            reason = self._reasons.get(
                shard, f"it holds {len(table)} samples and not {self._of(shard).samples}"
            )
            raise BadSample(f"the shard ends before this sample: {reason}")
        return table[ordinal]

    def bytes(self, shard: int, offset: int, size: int) -> bytes:
        """Return part of a shard. Raises DataReadError after retries, UserError where the shard changed."""
        entry = self._of(shard)
        data = self._read(entry, offset, size)
        if len(data) < size:
            raise UserError(f"{entry.path} became shorter since the index was made; make the index again")
        return data

    def members(self, shard: int, ordinal: int) -> dict[str, bytes]:
        """All members of a sample by their extension, those that the index does not know included.

        They lie between the last known member of the sample before and the first of the sample behind.
        """
        row = self.member(shard, ordinal)
        entry = self._of(shard)
        start = _end(self.member(shard, ordinal - 1)) if ordinal else 0
        stop = min(entry.bytes, _end(row) + _BEHIND_LAST)
        if ordinal + 1 < entry.samples:
            with suppress(BadSample):  # of a shard that ends before its count
                stop = _begin(self.member(shard, ordinal + 1)) - _HEADER
        span = io.BytesIO(self.bytes(shard, start, max(stop - start, 0)))
        found: list[tuple[str, str, int, bytes]] = []
        with suppress(tarfile.TarError, *DAMAGE), open_tar(span) as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    content = span.getbuffer()[member.offset_data : member.offset_data + member.size]
                    found.append((*split_name(member.name), start + member.offset_data, bytes(content)))
        own = next((key for key, _, offset, _ in found if offset == _begin(row)), None)
        return {extension: content for key, extension, _, content in reversed(found) if key == own}

    def key(self, shard: int, ordinal: int) -> str:
        """The key of a sample, read from its member's header; "?" where it cannot be found."""
        with suppress(BadSample, UserError):
            row = self.member(shard, ordinal)
            offset = int(row["image"] or row["text"]) - _HEADER
            found = key_in_header(self.bytes(shard, offset, _HEADER))
            keys = _keys(self._storage, self._of(shard).path) if found is None else None
            return found if found is not None else (keys or ["?"] * (ordinal + 1))[ordinal]
        return "?"

    def _of(self, shard: int) -> Shard:
        return self.index.shards[shard]

    def _read(self, entry: Shard, offset: int, size: int) -> bytes:
        if self._cache is None:
            return self._storage.read(entry.path, offset, size, entry.status)
        name = f"{entry.path}\n{entry.bytes}\n{entry.version}"
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
        """Read from a command's output, running the command where the cache does not hold the range."""
        assert self._cache is not None
        lock = os.open(self._cache.directory / "commands.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not self._cache.holds(name, offset, size, entry.bytes):
                fcntl.flock(lock, fcntl.LOCK_EX)  # so that the workers do not all run the same command
            if not self._cache.holds(name, offset, size, entry.bytes):
                with self._storage.open(entry.path) as output:
                    if output.seek(0, os.SEEK_END) != entry.bytes:
                        raise UserError(f"{entry.path} writes another shard than when the index was made")
                    output.seek(0)
                    self._cache.fill(name, output)
                    output.seek(offset)
                    return output.read(size)
        finally:
            os.close(lock)

        def again(at: int, count: int) -> bytes:  # a block that was evicted between the two looks
            with self._storage.open(entry.path) as output:
                output.seek(at)
                return output.read(count)

        return self._cache.read(name, offset, size, entry.bytes, again)

    def _table(self, shard: int) -> np.ndarray:
        """A shard's members, found by reading its headers; kept beside the index for all other processes."""
        if shard not in self._tables:
            kept = self.index.directory / "members" / f"{shard // 1000:04d}" / f"{shard:07d}.npz"
            found = _load_table(kept)
            if found is None:
                found = self._scanned(shard)
                _save_table(kept, *found)
            self._tables[shard], reason = found
            if reason:
                self._reasons[shard] = reason
            if len(self._tables) > _TABLES:
                self._reasons.pop(self._tables.popitem(last=False)[0], None)
        self._tables.move_to_end(shard)
        return self._tables[shard]

    def _scanned(self, shard: int) -> tuple[np.ndarray, str]:
        entry = self._of(shard)
        try:
            with self._storage.open(entry.path) as file:
                found = scan(file)
        except NotATar as error:
            raise UserError(f"{entry.path} is not an uncompressed tar file ({error})") from None
        if len(found.members) > entry.samples:
            _log.warning(
                "%s holds %d samples, but the index counts %d; the others are left out",
                entry.path,
                len(found.members),
                entry.samples,
            )
        return found.members, found.damage or ""


def _begin(row: np.ndarray) -> int:
    """Offset of the first known member of a sample."""
    return min(int(row[name]) for name in ("image", "text", "cls") if row[name])


def _end(row: np.ndarray) -> int:
    """Offset of the first header behind the known members of a sample."""
    ends = (int(row[name]) + int(row[f"{name}_bytes"]) for name in ("image", "text", "cls"))
    return -(-max(ends) // _HEADER) * _HEADER


def _load_table(path: Path) -> tuple[np.ndarray, str] | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return kept["members"], str(kept["damage"])
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _save_table(path: Path, members: np.ndarray, damage: str) -> None:
    with suppress(OSError):  # an index that may only be read: every process finds the members for itself
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            np.savez_compressed(file, members=members, damage=np.array(damage))
        os.replace(file.name, path)


@lru_cache(maxsize=16)  # a shard with one bad sample has more, and reading 10,000 headers takes a second
def _keys(storage: Storage, path: str) -> list[str]:
    with suppress(NotATar, OSError), storage.open(path) as file:
        return scan(file).keys
    return []
