"""A cache of shards on a local disk: blocks of them as files, shared by all processes that see it."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from flipscale.errors import UserError

_BLOCK = 8 << 20  # bytes; some 200 samples of 256 px, so that one request serves many
_SMALLEST_BLOCK = 64 << 10
_OPEN_BLOCKS = 64
_ABANDONED = 3600  # seconds after which a partial file is taken to be of a process that died
_CHECKSUM = 4  # bytes of CRC-32 behind each block's content
_log = logging.getLogger(__name__)


class BlockCache:
    """Keeps the last used blocks within `limit` bytes.

    A block is one file, complete or absent: it is written beside its place, moved there in one step, and
    verified by its checksum when a process first opens it. Eviction deletes the blocks that were opened
    longest ago; a process that reads one keeps reading it. Where the cache cannot be written, reading goes on
    without it: that is warned of once, and counted in `failures`, over all processes that share this object.
    """

    def __init__(self, directory: Path, limit: int, failures: Any = None) -> None:
        self.directory = directory
        self.limit = limit
        # Of the spawn context, whose locks reach forked workers as well as spawned ones.
        self._failures = failures or multiprocessing.get_context("spawn").Value("L", 0)
        # A limit of a few blocks would keep nothing of use.
        self.block = max(_SMALLEST_BLOCK, min(_BLOCK, limit // 64))
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()  # name -> descriptor, bytes
        self._unscanned = limit  # bytes written since the directory was last measured: measure it first
        self._writes = True
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache.directory {directory} cannot be made: {error.strerror}") from None

    def __reduce__(self) -> tuple[type[BlockCache], tuple[Path, int, Any]]:
        return BlockCache, (self.directory, self.limit, self._failures)

    @property
    def failures(self) -> int:
        """Blocks that could not be written."""
        return self._failures.value

    def read(
        self, shard: str, offset: int, size: int, total: int, fetch: Callable[[int, int], bytes]
    ) -> bytes:
        """Return `size` bytes at `offset` of a shard of `total` bytes.

        Args:
            shard: what identifies the shard's content, version included.
            fetch: reads (offset, size) of the shard itself.
        """
        stop = min(offset + size, total)
        parts: list[bytes] = []
        while offset < stop:
            number = offset // self.block
            begin = number * self.block
            length = min(self.block, total - begin)
            wanted = min(stop, begin + length) - offset
            name = self._name(shard, number)
            part = self._cached(name, length, offset - begin, wanted)
            if part is None and self._writes:
                content = fetch(begin, length)
                if len(content) == length:  # else the shard became shorter; that is for the reader to say
                    self._add(name, content)
                part = content[offset - begin : offset - begin + wanted]
            parts.append(fetch(offset, wanted) if part is None else part)
            offset += wanted
        return b"".join(parts)

    def holds(self, shard: str, offset: int, size: int, total: int) -> bool:
        """Whether all blocks of a range are there."""
        numbers = range(offset // self.block, -(-min(offset + size, total) // self.block))
        return all((self.directory / self._name(shard, number)).exists() for number in numbers)

    def fill(self, shard: str, content: BinaryIO) -> None:
        """Put a whole shard into the cache."""
        for number, block in enumerate(iter(lambda: content.read(self.block), b"")):
            self._add(self._name(shard, number), block)

    def _name(self, shard: str, number: int) -> str:
        digest = hashlib.blake2b(f"{shard}\n{self.block}\n{number}".encode(), digest_size=16).hexdigest()
        return f"{digest}.block"

    def _cached(self, name: str, length: int, offset: int, size: int) -> bytes | None:
        if name not in self._open:
            descriptor = self._verified(self.directory / name, length)
            if descriptor is None:
                return None
            self._open[name] = descriptor, length
            if len(self._open) > _OPEN_BLOCKS:
                os.close(self._open.popitem(last=False)[1][0])
        self._open.move_to_end(name)
        with suppress(OSError):
            data = os.pread(self._open[name][0], size, offset)
            if len(data) == size:
                return data
        os.close(self._open.pop(name)[0])  # a handle that went stale
        return None

    def _verified(self, path: Path, length: int) -> int | None:
        """Open a block, as the one used last; None where there is none, or a damaged one."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            content = os.pread(descriptor, length + _CHECKSUM + 1, 0)
            checksum = zlib.crc32(content[:length]).to_bytes(_CHECKSUM, "little")
            if len(content) == length + _CHECKSUM and content[length:] == checksum:
                with suppress(OSError):  # evicted meanwhile, or a cache that may only be read
                    os.utime(path)
                return descriptor
            _log.warning("%s in the cache is damaged; it is read again", path)
            path.unlink(missing_ok=True)
        except OSError:
            pass
        os.close(descriptor)
        return None

    def _add(self, name: str, content: bytes) -> None:
        partial = self.directory / f".{name}.{uuid.uuid4().hex}"
        try:
            # What this process wrote since it last looked stays small beside the limit, so that even
            # hundreds of processes together stay near it.
            if self._unscanned + len(content) > self.limit // 1024:
                self._evict(len(content) + _CHECKSUM)
                self._unscanned = 0
            self._unscanned += len(content)
            with open(partial, "xb") as file:
                file.write(content)
                file.write(zlib.crc32(content).to_bytes(_CHECKSUM, "little"))
            os.replace(partial, self.directory / name)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._writes = False
            with self._failures.get_lock():
                self._failures.value += 1
                first = self._failures.value == 1
            if first:
                _log.warning(
                    "data.cache.directory %s cannot be written (%s); reading goes on without it",
                    self.directory,
                    error.strerror,
                )

    def _evict(self, incoming: int) -> None:
        """Make room for `incoming` bytes: delete the blocks opened longest ago, down to 7/8 of the limit."""
        blocks: list[tuple[float, int, str]] = []
        total = incoming
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(OSError):  # deleted by another process meanwhile
                    found = entry.stat()
                    total += found.st_size
                    if entry.name.endswith(".block"):
                        blocks.append((found.st_mtime, found.st_size, entry.name))
                    elif ".block." in entry.name and time.time() - found.st_mtime > _ABANDONED:
                        os.unlink(entry.path)
        if total <= self.limit:
            return
        for _, size, name in sorted(blocks):
            with suppress(FileNotFoundError):
                os.unlink(self.directory / name)
            total -= size
            if total <= self.limit - self.limit // 8:
                break
