"""Making an index: shards are scanned in parallel, and a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flipscale import jsonl
from flipscale.data.shards.index import Damage, Index, Shard, expand_shards, write_index
from flipscale.data.shards.remote import Status
from flipscale.data.shards.storage import Storage, is_command, is_remote
from flipscale.data.shards.tar import MEMBER, NotATar, scan
from flipscale.errors import UserError

_RECORDED_AT_ONCE = 64  # shards that a killed run scans again at most
_REMOTE_AT_ONCE = 8  # remote shards that one process scans at a time, since it mostly waits
_OWN_FILES = {"index.json", "index.json.partial", "members.bin", "members", "journal.jsonl"}

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class _Scanned:
    shard: Shard
    members: np.ndarray | None
    damage: str | None


def build_index(
    pattern: str,
    directory: Path,
    *,
    workers: int = 1,
    members: bool = True,
    from_stats: bool = False,
    storage: Storage | None = None,
    progress: Report = lambda done, total: None,
) -> Index:
    """Write the index of the shards to `directory`, replacing an index that lies there.

    Args:
        workers: processes that share the shards.
        members: keep where every sample lies (36 bytes a sample), so that no shard is ever scanned again.
        from_stats: take the counts from img2dataset's SHARD_stats.json instead of the tars; no `members`.
        progress: called with (shards done, shards in all).

    Raises UserError for shards that are missing, unreadable or no tar, a set without samples, and a directory
    that cannot be written or holds something else.
    """
    storage = storage or Storage()
    members = members and not from_stats
    paths = expand_shards(pattern)
    _check_local(paths, pattern)
    _prepare(directory)
    journal = _Journal(directory, {"members": members, "from_stats": from_stats})
    shards = journal.reusable(paths, storage)
    damaged = journal.damaged(len(shards))
    if shards:
        progress(len(shards), len(paths))
    one = partial(_from_stats if from_stats else _scanned, storage=storage, keep=members)
    with open(directory / "members.bin", "r+b" if journal.rows(len(shards)) else "wb") as table:
        table.truncate(journal.rows(len(shards)) * MEMBER.itemsize)
        table.seek(0, os.SEEK_END)
        batch: list[_Scanned] = []
        for found in _map(one, paths[len(shards) :], workers):
            if found.members is not None:
                table.write(found.members.tobytes())
            shards.append(found.shard)
            if found.damage is not None:
                damaged.append(Damage(found.shard.path, found.shard.samples, found.damage))
            batch.append(found)
            if len(batch) == _RECORDED_AT_ONCE or len(shards) == len(paths):
                table.flush()
                os.fsync(table.fileno())
                journal.add(batch)
                batch.clear()
            progress(len(shards), len(paths))
    if not sum(shard.samples for shard in shards):
        cut = f"; {damaged[0].path} is damaged: {damaged[0].reason}" if damaged else ""
        raise UserError(f"no shard of {pattern!r} holds image-caption pairs (jpg|jpeg|png|webp, txt){cut}")
    if not members:
        (directory / "members.bin").unlink()
    index = Index(directory, tuple(shards), tuple(damaged), members)
    write_index(index)
    journal.remove()
    return index


def _check_local(paths: list[str], pattern: str) -> None:
    missing = [path for path in paths if not is_remote(path) and not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the shard {missing[0]}{more} of the pattern {pattern!r} does not exist; correct the pattern "
            "(in a job: data.train)"
        )


def _prepare(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(entry.name not in _OWN_FILES for entry in directory.iterdir()):
            raise UserError(f"{directory} is not empty and holds no index; name another directory for it")
        (directory / "index.json").unlink(missing_ok=True)
        shutil.rmtree(directory / "members", ignore_errors=True)  # found for the shards as they were
    except OSError as error:
        raise UserError(f"the index directory {directory} cannot be made: {error.strerror}") from None


class _Journal:
    """What was scanned so far, a line a shard in index order; there only while an index is being made."""

    def __init__(self, directory: Path, kind: dict[str, bool]) -> None:
        self._path = directory / "journal.jsonl"
        self._table = directory / "members.bin"
        try:
            lines = jsonl.read(self._path)
        except UserError:
            lines = []
        self._lines = lines[1:] if lines and lines[0] == kind else []
        if not self._lines:
            self._path.unlink(missing_ok=True)
            jsonl.append(self._path, [kind])
        else:
            jsonl.keep(self._path)  # without the line that a crash cut
        self._has_rows = kind["members"]

    def reusable(self, paths: Sequence[str], storage: Storage) -> list[Shard]:
        """The shards scanned already: from the first on, until one differs from what is there now."""

        def unchanged(pair: tuple[str, Shard]) -> bool:
            path, shard = pair
            try:
                return path == shard.path and (is_command(path) or storage.status(path) == shard.status)
            except OSError:
                return False

        known = [Shard(*line["shard"]) for line in self._lines]
        with ThreadPoolExecutor(32) as pool:
            same = list(pool.map(unchanged, zip(paths, known, strict=False)))
        kept = same.index(False) if False in same else len(same)
        rows = self._table.stat().st_size // MEMBER.itemsize if self._table.exists() else 0
        while kept and self.rows(kept) > rows:
            kept -= 1
        if kept < len(self._lines):
            self._lines = self._lines[:kept]
            count = iter(range(kept + 1))
            jsonl.keep(self._path, lambda _: next(count, None) is not None)
        return known[:kept]

    def rows(self, shards: int) -> int:
        """Rows of the members table that belong to the first `shards`."""
        return sum(line["shard"][1] for line in self._lines[:shards]) if self._has_rows else 0

    def damaged(self, shards: int) -> list[Damage]:
        found = (line for line in self._lines[:shards] if line["damage"] is not None)
        return [Damage(line["shard"][0], line["shard"][1], line["damage"]) for line in found]

    def add(self, batch: Sequence[_Scanned]) -> None:
        lines = ({"shard": list(found.shard), "damage": found.damage} for found in batch)
        jsonl.append(self._path, lines, durable=True)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _map(one: Callable[[str], _Scanned], paths: list[str], workers: int) -> Iterator[_Scanned]:
    """The results in the order of the paths."""
    if not paths:
        return
    chunk = max(1, min(16, len(paths) // (4 * workers)))
    chunks = [paths[start : start + chunk] for start in range(0, len(paths), chunk)]
    if workers <= 1 or len(chunks) == 1:
        for part in chunks:
            yield from _chunk(one, part)
        return
    with ProcessPoolExecutor(workers) as pool:
        for results in pool.map(partial(_chunk, one), chunks):
            yield from results


def _chunk(one: Callable[[str], _Scanned], paths: list[str]) -> list[_Scanned]:
    if not any(is_remote(path) for path in paths):
        return list(map(one, paths))
    with ThreadPoolExecutor(_REMOTE_AT_ONCE) as pool:
        return list(pool.map(one, paths))


def _scanned(path: str, *, storage: Storage, keep: bool) -> _Scanned:
    """Read one shard's tar headers."""
    try:
        with storage.open(path) as file:
            status = Status(file.seek(0, os.SEEK_END), "") if is_command(path) else storage.status(path)
            found = scan(file)
    except FileNotFoundError:
        raise UserError(f"the shard {path} does not exist; check the pattern that names it") from None
    except NotATar as error:
        raise UserError(f"{path} is not an uncompressed tar file ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    shard = Shard(path, len(found.members), status.bytes, status.version)
    return _Scanned(shard, found.members if keep else None, found.damage)


def _from_stats(path: str, *, storage: Storage, keep: bool) -> _Scanned:
    """Take one shard's count from the statistics that img2dataset wrote beside it."""
    stats = path.removesuffix(".tar") + "_stats.json"
    if is_command(path):
        raise UserError(
            f"the shard {path!r} has no statistics beside it; make the index without --from-stats"
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
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return _Scanned(Shard(path, samples, status.bytes, status.version), None, None)
