"""The journal of an unfinished index: the shards scanned so far, from which a killed command resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flipscale import jsonl
from flipscale.addresses import without_signature
from flipscale.config import IMAGE_EXTENSIONS
from flipscale.data.shards.index import Damage, Shard
from flipscale.data.shards.index_directory import JOURNAL, TABLE
from flipscale.data.shards.storage import Storage, is_command
from flipscale.data.shards.tar import MEMBER
from flipscale.documents import typed
from flipscale.errors import UserError
from flipscale.files import write_durably

_COMPARED_AT_ONCE = 32  # shards whose size and version are requested at the same time


@dataclass(frozen=True)
class IndexKind:
    """The options that an index and its journal have in common. It is the first line of the journal."""

    members: bool = True
    """Whether the index has the members table, the offsets of each sample."""
    from_stats: bool = False
    """Whether the counts are those of img2dataset's SHARD_stats.json, and not of the tars."""
    images: tuple[str, ...] = IMAGE_EXTENSIONS
    """The extensions of images."""

    def as_record(self) -> dict[str, Any]:
        """Return the options as JSON values; the usual extensions are left out, as in older journals."""
        record: dict[str, Any] = {"members": self.members, "from_stats": self.from_stats}
        return record if self.images == IMAGE_EXTENSIONS else {**record, "images": list(self.images)}


@dataclass(frozen=True)
class JournalEntry:
    """One line of the journal: a shard that was scanned."""

    shard: Shard
    damage: str | None
    """Why the shard ends early; None if it does not."""

    def as_record(self) -> dict[str, Any]:
        """Return the entry as a mapping of JSON values."""
        return {"shard": list(self.shard), "damage": self.damage}


class Journal:
    """The shards scanned so far, one line per shard in index order. The file exists until the index does.

    Args:
        directory: Directory of the index.
        kind: The options of the index. A journal of other options is discarded.
    """

    def __init__(self, directory: Path, kind: IndexKind) -> None:
        self._path = directory / JOURNAL
        self._table = directory / TABLE
        self._has_rows = kind.members

        lines: list[dict[str, Any]] = []
        with suppress(UserError):
            lines = jsonl.read(self._path)
        kept = lines[1:] if lines and lines[0] == kind.as_record() else []
        try:
            self._entries = [typed(JournalEntry, line) for line in kept]
        except ValueError:
            self._entries = []
        if any(entry.shard.samples < 0 for entry in self._entries):
            self._entries = []

        if not self._entries:
            write_durably(self._path, json.dumps(kind.as_record()) + "\n")
        else:
            jsonl.keep(self._path)  # without the line that a crash cut

    def reusable(self, paths: Sequence[str], storage: Storage) -> list[Shard]:
        """Return the shards that need no scan, and remove the lines of the others.

        These are the shards from the first one to the first that differs from its line, or whose rows are not
        in the members table.

        Args:
            paths: All shards of the index, in order.
            storage: Reports the size and version of a shard.
        """

        def unchanged(pair: tuple[str, Shard]) -> bool:
            path, shard = pair
            try:
                same = without_signature(path) == without_signature(shard.path)
                return same and (is_command(path) or storage.status(path) == shard.status)
            except OSError:
                return False

        known = [entry.shard for entry in self._entries]
        with ThreadPoolExecutor(_COMPARED_AT_ONCE) as pool:
            same = list(pool.map(unchanged, zip(paths, known, strict=False)))
        kept = same.index(False) if False in same else len(same)

        # A crash may have cut the table as well.
        rows = self._table.stat().st_size // MEMBER.itemsize if self._table.exists() else 0
        while kept and self.rows(kept) > rows:
            kept -= 1

        if kept < len(self._entries):
            self._entries = self._entries[:kept]
            count = iter(range(kept + 1))
            jsonl.keep(self._path, lambda _: next(count, None) is not None)

        # A signature in a path may have changed.
        self._entries = [
            replace(entry, shard=entry.shard._replace(path=path))
            for entry, path in zip(self._entries, paths, strict=False)
        ]
        return [entry.shard for entry in self._entries]

    def rows(self, shards: int) -> int:
        """Return the rows of the members table that belong to the first `shards`."""
        return sum(entry.shard.samples for entry in self._entries[:shards]) if self._has_rows else 0

    def damaged(self, shards: int) -> list[Damage]:
        """Return the damage among the first `shards`."""
        return [
            Damage(entry.shard.path, entry.shard.samples, entry.damage)
            for entry in self._entries[:shards]
            if entry.damage is not None
        ]

    def add(self, entries: Sequence[JournalEntry]) -> None:
        """Append the shards, and return when they are on disk."""
        jsonl.append(self._path, (entry.as_record() for entry in entries), durable=True)

    def remove(self) -> None:
        """Delete the journal."""
        self._path.unlink(missing_ok=True)
