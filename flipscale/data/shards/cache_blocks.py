"""The files of a cache: which of them are blocks, whether a block is what it says, and which are deleted."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import time
import zlib
from contextlib import suppress
from pathlib import Path

_BLOCK = re.compile(r"[0-9a-f]{32}\.block")
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.block\.[0-9a-f]{32}")
_MAGIC = b"flipscale block\n"  # behind the content of each block; the digest follows
_DIGEST = 32  # bytes
_OLD_CHECKSUM = 4  # bytes of CRC-32 that ended the blocks of version 0.2.0
_ABANDONED = 3600  # seconds after which a partial file is attributed to a process that died
_FLAGS = (
    os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
)  # a fifo does not block, a link is refused
_log = logging.getLogger(__name__)


class Blocks:
    """The blocks of a user in a cache's directory. Names and digests depend on the key of the user.

    Whoever does not know the key cannot make a block that is believed, even if the directory is writable for
    everybody.

    Args:
        directory: Directory of the cache.
        key: The secret key of the user, at most 64 bytes.
    """

    def __init__(self, directory: Path, key: bytes) -> None:
        self._directory = directory
        self._key = key

    def name(self, shard: str, block: int, number: int) -> str:
        """Return the name of a block.

        Args:
            shard: Identity of the shard's content, including its version.
            block: Bytes of a block.
            number: Number of the block in the shard.
        """
        identity = f"{shard}\n{block}\n{number}".encode()
        return f"{hashlib.blake2b(identity, key=self._key, digest_size=16).hexdigest()}.block"

    def trailer(self, name: str, content: bytes) -> bytes:
        """Return what follows the content of a block in its file."""
        return _MAGIC + hashlib.blake2b(name.encode() + content, key=self._key, digest_size=_DIGEST).digest()

    def open(self, name: str, length: int) -> int | None:
        """Open a block of `length` bytes and mark it as used; None if it is absent, damaged or another's."""
        path = self._directory / name
        try:
            descriptor = os.open(path, _FLAGS)
        except OSError:
            return None

        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                content = os.pread(descriptor, length + len(_MAGIC) + _DIGEST + 1, 0)
                if content[length:] == self.trailer(name, content[:length]):
                    with suppress(OSError):  # evicted meanwhile, or a read-only cache
                        os.utime(path)
                    return descriptor

                _log.warning("%s in the cache is damaged; it is read again", path)
                path.unlink(missing_ok=True)
        except OSError:
            pass

        os.close(descriptor)
        return None

    def place(self, partial: Path, name: str) -> None:
        """Give a written block its name; whatever is not a file stays, and the block is dropped.

        Raises:
            OSError: If the directory cannot be written.
        """
        path = self._directory / name
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                _log.warning("%s in the cache is not a file of the cache; its block is not kept", path)
                partial.unlink()
                return

        os.replace(partial, path)

    def evict(self, incoming: int, limit: int) -> None:
        """Make room for `incoming` bytes: delete the blocks opened longest ago, down to 7/8 of the limit.

        Files that are not blocks neither count nor are deleted.
        """
        blocks: list[tuple[float, int, str]] = []
        total = incoming
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(OSError):  # deleted by another process meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    if _BLOCK.fullmatch(entry.name):
                        total += status.st_size
                        blocks.append((status.st_mtime, status.st_size, entry.name))
                    elif _PARTIAL.fullmatch(entry.name):
                        total += status.st_size
                        if time.time() - status.st_mtime > _ABANDONED:
                            os.unlink(entry.path)

        if total <= limit:
            return

        for _, size, name in sorted(blocks):
            with suppress(FileNotFoundError):
                if not _is_block(self._directory / name, size):
                    continue
                os.unlink(self._directory / name)
            total -= size
            if total <= limit - limit // 8:
                break


def holds_blocks(directory: Path) -> bool:
    """Return whether a directory has files with the names of blocks."""
    return any(_BLOCK.fullmatch(name) for name in os.listdir(directory))


def _is_block(path: Path, size: int) -> bool:
    """Return whether a file with the name of a block is one, by what ends it.

    Raises:
        FileNotFoundError: If it is gone.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        end = len(_MAGIC) + _DIGEST
        if os.pread(descriptor, len(_MAGIC), max(size - end, 0)) == _MAGIC:
            return True

        old = os.pread(descriptor, size, 0)
        return old[-_OLD_CHECKSUM:] == zlib.crc32(old[:-_OLD_CHECKSUM]).to_bytes(_OLD_CHECKSUM, "little")
    finally:
        os.close(descriptor)
