"""Making the checksums of an index: the shards are read once, in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from flipscale.data.shards.checksums import header, shard_checksums
from flipscale.data.shards.index import Index
from flipscale.data.shards.index_directory import CHECKSUMS
from flipscale.data.shards.storage import is_remote
from flipscale.errors import UserError, words_of

MOST_OF_A_RUN = 32 << 30
"""Bytes of shards up to which a run that builds its own index reads them whole for checksums."""


def can_have_checksums(index: Index) -> bool:
    """Return whether the places of all samples are known and all shards are local files."""
    return index.has_members and not any(is_remote(shard.path) for shard in index.shards)


def write_checksums(
    index: Index, workers: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write checksums.bin; it appears whole or not at all.

    Args:
        index: An index that can have checksums.
        workers: Threads that share the shards; reading and CRC-32 leave the interpreter to others.
        progress: Called with the shards done and the shards in total.

    Raises:
        UserError: If a shard cannot be read or changed, or the file cannot be written.
    """

    def one(number: int) -> bytes:
        first = int(index.first_rows[number])
        shard = index.shards[number]
        try:
            return shard_checksums(shard.path, index.members[first : first + shard.samples]).tobytes()
        except OSError as error:
            raise UserError(
                f"{shard.path} cannot be read ({words_of(error)}); restore it, or leave it out"
            ) from None

    path = index.directory / CHECKSUMS
    partial = path.with_name(f"{CHECKSUMS}.partial")
    try:
        with open(partial, "wb") as file, ThreadPoolExecutor(workers) as pool:
            file.write(header(index.fingerprint))
            for done, sums in enumerate(pool.map(one, range(len(index.shards))), 1):
                file.write(sums)
                progress(done, len(index.shards))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); make room, or use --no-checksums"
        ) from None
