"""Making an index: shards are scanned in parallel, and a command that was killed resumes where it stopped."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flipscale.addresses import without_secrets
from flipscale.child_process import FORK, die_with_parent
from flipscale.data.shards import index_directory
from flipscale.data.shards.index import Damage, Index, Shard, expand_shards
from flipscale.data.shards.index_document import write_index
from flipscale.data.shards.journal import IndexKind, Journal, JournalEntry
from flipscale.data.shards.remote import Status
from flipscale.data.shards.storage import Storage, is_command, is_remote
from flipscale.data.shards.tar import MEMBER, NotATar, Stray, Strays, not_a_tar, scan
from flipscale.errors import UserError, words_of

_RECORDED_AT_ONCE = 64  # most shards that a killed command scans again
_REMOTE_AT_ONCE = 8  # remote shards per process at a time; scanning one is mostly waiting
_WHOLE = IndexKind()
_log = logging.getLogger(__name__)

Report = Callable[[int, int], None]
"""A function that is called with the shards done and the shards in total."""


@dataclass(frozen=True)
class _ScannedShard:
    """The result of scanning one shard."""

    shard: Shard
    members: np.ndarray | None  # MEMBER (samples,); None for an index without the table
    damage: str | None
    strays: Strays


def build_index(
    pattern: str,
    directory: Path,
    *,
    workers: int = 1,
    kind: IndexKind = _WHOLE,
    storage: Storage | None = None,
    progress: Report = lambda done, total: None,
) -> Index:
    """Write the index of the shards to `directory`, replacing an index that is there.

    Args:
        pattern: Shard paths with braces and `::`.
        directory: Directory of the index.
        workers: Processes that share the shards.
        kind: What the index holds.
        storage: Reads the shards; default: without commands, with the default time limits.
        progress: Called after each shard.

    Raises:
        UserError: If shards are missing, unreadable or not a tar, no shard holds a sample, or the directory
            cannot be written or holds something else.
    """
    storage = storage or Storage()
    kind = replace(kind, members=kind.members and not kind.from_stats)
    paths = expand_shards(pattern)
    _check_local(paths, pattern)
    index_directory.prepare(directory)

    # The journal first: it marks the directory as ours while there is no index.
    journal = Journal(directory, kind)
    _remove_old(directory)
    shards = journal.reusable(paths, storage)
    damaged = journal.damaged(len(shards))
    if shards:
        progress(len(shards), len(paths))

    read = partial(_read_stats if kind.from_stats else _scan_shard, storage=storage, kind=kind)
    with open(directory / index_directory.TABLE, "r+b" if journal.rows(len(shards)) else "wb") as table:
        table.truncate(journal.rows(len(shards)) * MEMBER.itemsize)
        table.seek(0, os.SEEK_END)
        for scanned in _record(_warned(_map(read, paths[len(shards) :], workers)), table, journal):
            shards.append(scanned.shard)
            if scanned.damage is not None:
                damaged.append(Damage(scanned.shard.path, scanned.shard.samples, scanned.damage))
            progress(len(shards), len(paths))

    if not sum(shard.samples for shard in shards):
        cut = f"; {damaged[0].path} is damaged: {damaged[0].reason}" if damaged else ""
        raise UserError(
            f"no shard of {pattern!r} holds image-caption pairs ({'|'.join(kind.images)}, txt){cut}; if the "
            "images have other extensions, name them in data.images"
        )
    if not kind.members:
        (directory / index_directory.TABLE).unlink()

    # The journal goes last: until then, a killed command can resume.
    index = Index(directory, tuple(shards), tuple(damaged), kind.members, kind.images)
    write_index(index)
    journal.remove()

    return index


def _warned(results: Iterator[_ScannedShard]) -> Iterator[_ScannedShard]:
    """Yield the results, and warn of members that belong to no sample."""
    images, others = Stray(), Stray()
    for scanned in results:
        place = without_secrets(scanned.shard.path)
        for total, found in ((images, scanned.strays.images), (others, scanned.strays.others)):
            if found.count:
                total.add(f"{found.first} in {place}", found.count)
        yield scanned

    if images.count:
        _log.warning(
            "%d images belong to no sample, such as %s: a key ends at the first dot, and `data.images` names "
            "the extensions behind it",
            images.count,
            images.first,
        )
    if others.count:
        _log.warning("%d other members belong to no sample, such as %s", others.count, others.first)


def _record(results: Iterator[_ScannedShard], table: BinaryIO, journal: Journal) -> Iterator[_ScannedShard]:
    """Yield the results; store their rows in the table and, in batches, their lines in the journal."""
    batch: list[_ScannedShard] = []

    def commit() -> None:
        # The rows must be on disk before the lines that count them.
        table.flush()
        os.fsync(table.fileno())
        journal.add([JournalEntry(scanned.shard, scanned.damage) for scanned in batch])
        batch.clear()

    for scanned in results:
        if scanned.members is not None:
            table.write(scanned.members.tobytes())
        batch.append(scanned)
        if len(batch) == _RECORDED_AT_ONCE:
            commit()
        yield scanned

    if batch:
        commit()


def _remove_old(directory: Path) -> None:
    """Remove the index that is in the directory, but for the table that the journal belongs to."""
    try:
        (directory / index_directory.INDEX).unlink(missing_ok=True)
        (directory / index_directory.CHECKSUMS).unlink(missing_ok=True)
        index_directory.remove_tables(directory)  # of the shards as they were
    except OSError as error:
        raise UserError(
            f"the index directory {directory} cannot be made ({error.strerror}); name another one"
        ) from None


def _check_local(paths: list[str], pattern: str) -> None:
    """Raise UserError if a local shard does not exist."""
    missing = [path for path in paths if not is_remote(path) and not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the shard {missing[0]}{more} of the pattern {pattern!r} does not exist; correct the pattern "
            "(in a job: data.train)"
        )


def _map(one: Callable[[str], _ScannedShard], paths: list[str], workers: int) -> Iterator[_ScannedShard]:
    """Yield the results in the order of the paths."""
    if not paths:
        return

    chunk = max(1, min(16, len(paths) // (4 * workers)))
    chunks = [paths[start : start + chunk] for start in range(0, len(paths), chunk)]
    if workers <= 1 or len(chunks) == 1:
        for part in chunks:
            yield from _chunk(one, part)
        return

    with ProcessPoolExecutor(workers, FORK, die_with_parent, (os.getpid(),)) as pool:
        for results in pool.map(partial(_chunk, one), chunks):
            yield from results


def _chunk(one: Callable[[str], _ScannedShard], paths: list[str]) -> list[_ScannedShard]:
    if not any(is_remote(path) for path in paths):
        return list(map(one, paths))

    with ThreadPoolExecutor(_REMOTE_AT_ONCE) as pool:
        return list(pool.map(one, paths))


def _scan_shard(path: str, *, storage: Storage, kind: IndexKind) -> _ScannedShard:
    """Read one shard's tar headers."""
    try:
        with storage.open(path) as file:
            status = Status(file.seek(0, os.SEEK_END), "") if is_command(path) else storage.status(path)
            result = scan(file, kind.images)
    except FileNotFoundError:
        raise UserError(f"the shard {path} does not exist; check the pattern that names it") from None
    except NotATar as error:
        raise not_a_tar(path, error) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({words_of(error)}); restore it, or leave it out") from None

    shard = Shard(path, len(result.members), status.bytes, status.version)
    return _ScannedShard(shard, result.members if kind.members else None, result.damage, result.strays)


def _read_stats(path: str, *, storage: Storage, kind: IndexKind) -> _ScannedShard:
    """Take one shard's count from the statistics that img2dataset wrote next to it."""
    stats = path.removesuffix(".tar") + "_stats.json"
    if is_command(path):
        raise UserError(
            f"the shard {path!r} has no statistics next to it; make the index without --from-stats"
        )

    try:
        status = storage.status(path)
        with storage.open(stats) as file:
            samples = json.loads(file.read())["successes"]
        if type(samples) is not int or samples < 0:
            raise ValueError(f"successes is {samples!r}")
    except FileNotFoundError:
        raise UserError(
            f"{path} or its statistics {stats} does not exist; make the index without --from-stats"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{stats} holds no statistics of img2dataset ({error}); make the index without --from-stats"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({words_of(error)}); restore it, or leave it out") from None

    return _ScannedShard(Shard(path, samples, status.bytes, status.version), None, None, Strays())
