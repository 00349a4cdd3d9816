"""A cache of shards on a local disk: blocks of shards as files, shared by all processes of the machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from flipscale.data.shards.cache_blocks import Blocks
from flipscale.data.shards.cache_key import prepare_cache, warn_of_strangers
from flipscale.errors import words_of

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

_BLOCK = 8 << 20  # bytes; about 200 samples of 256 px, so that one request serves many samples
_SMALLEST_BLOCK = 64 << 10
_OPEN_BLOCKS = 64
_log = logging.getLogger(__name__)


class BlockCache:
    """The last used blocks of shards, within a limit of bytes.

    A block is one file, which is either complete or absent. It is written under another name, renamed in one
    step, and verified by its digest when a process first opens it. Eviction deletes the blocks that were
    opened longest ago; a process that has one open can still read it. Files of others are never deleted.

    If the cache cannot be written, reading continues without it. A warning says so once, and `failures`
    counts the blocks, over all processes that share this object.

    Args:
        directory: Directory of the blocks.
        limit: Bytes that the blocks may use together.
        failures: Shared counter of an object of another process; default: a new one.

    Raises:
        UserError: If the directory cannot be made, or belongs to something else.
    """

    def __init__(self, directory: Path, limit: int, failures: Synchronized[int] | None = None) -> None:
        self.directory = directory
        self.limit = limit

        # The locks of the spawn context reach forked workers as well as spawned ones.
        self._failures: Synchronized[int] = failures or multiprocessing.get_context("spawn").Value("L", 0)

        # A cache of only a few blocks would keep nothing of use.
        self.block = max(_SMALLEST_BLOCK, min(_BLOCK, limit // 64))
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()  # name -> descriptor, bytes
        self._unscanned = limit  # bytes written since the directory was last measured; measure it first
        self._writes = True

        key = secrets.token_bytes()  # of nobody: no block is found
        try:
            key = prepare_cache(directory)
            if failures is None:  # else the object that was copied to this process has warned
                warn_of_strangers(directory)
        except OSError as error:
            self._count_failure(words_of(error))
        self._blocks = Blocks(directory, key)

    def __reduce__(self) -> tuple[type[BlockCache], tuple[Path, int, Synchronized[int]]]:
        return BlockCache, (self.directory, self.limit, self._failures)

    @property
    def failures(self) -> int:
        """The number of blocks that could not be written."""
        return self._failures.value

    def read(
        self, shard: str, offset: int, size: int, total: int, fetch: Callable[[int, int], bytes]
    ) -> bytes:
        """Return part of a shard; fewer than `size` bytes only at its end.

        Args:
            shard: Identity of the shard's content, including its version.
            offset: First byte.
            size: Number of bytes.
            total: Bytes of the whole shard.
            fetch: Reads (offset, size) of the shard itself.
        """
        stop = min(offset + size, total)
        parts: list[bytes] = []
        while offset < stop:
            number = offset // self.block
            begin = number * self.block
            length = min(self.block, total - begin)
            wanted = min(stop, begin + length) - offset
            name = self._blocks.name(shard, self.block, number)

            part = self._cached(name, length, offset - begin, wanted)
            if part is None and self._writes:
                content = fetch(begin, length)
                if len(content) == length:  # else the shard became shorter, which its reader reports
                    self._add(name, content)
                part = content[offset - begin : offset - begin + wanted]
            parts.append(fetch(offset, wanted) if part is None else part)
            offset += wanted

        return b"".join(parts)

    def holds(self, shard: str, offset: int, size: int, total: int) -> bool:
        """Return whether the cache has all blocks of a range (arguments as of `read`)."""
        numbers = range(offset // self.block, -(-min(offset + size, total) // self.block))
        names = (self._blocks.name(shard, self.block, number) for number in numbers)
        return all((self.directory / name).exists() for name in names)

    def fill(self, shard: str, content: BinaryIO) -> None:
        """Put a whole shard into the cache."""
        for number, block in enumerate(iter(lambda: content.read(self.block), b"")):
            self._add(self._blocks.name(shard, self.block, number), block)

    def _cached(self, name: str, length: int, offset: int, size: int) -> bytes | None:
        if name not in self._open:
            descriptor = self._blocks.open(name, length)
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

        os.close(self._open.pop(name)[0])  # the handle is stale
        return None

    def _add(self, name: str, content: bytes) -> None:
        if not self._writes:
            return

        partial = self.directory / f".{name}.{uuid.uuid4().hex}"
        try:
            # What this process writes between two measurements is small compared with the limit, so that
            # even hundreds of processes together stay near it.
            if self._unscanned + len(content) > self.limit // 1024:
                self._blocks.evict(len(content), self.limit)
                self._unscanned = 0
            self._unscanned += len(content)

            with open(partial, "xb") as file:
                file.write(content)
                file.write(self._blocks.trailer(name, content))
            self._blocks.place(partial, name)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._count_failure(words_of(error))

    def _count_failure(self, reason: str) -> None:
        """Stop writing; the first process of all that share the count warns."""
        self._writes = False
        with self._failures.get_lock():
            self._failures.value += 1
            first = self._failures.value == 1
        if first:
            _log.warning(
                "data.cache.directory %s cannot be written (%s); reading continues without it",
                self.directory,
                reason,
            )
