"""quarantine.jsonl: every sample or shard that could not be used, and why; one line each, never twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from flipscale import jsonl
from flipscale.errors import UserError

_FIRST_JUDGED = 1000  # samples before which a share says nothing


class BadSample(Exception):
    """A sample that training cannot use; the message is the reason that goes to quarantine."""


@dataclass(frozen=True)
class BadRecord:
    """One unusable sample. `shard` is its number in the index, `ordinal` its number in the shard.

    A shard that is cut short is recorded under the ordinal of the first sample that it lost.
    """

    shard: int
    ordinal: int
    path: str
    key: str
    reason: str


def kind(reason: str) -> str:
    """The reason without its numbers, which differ from image to image."""
    return re.sub(r"\d+", "N", reason)


class Quarantine:
    """The list of a run's unusable samples, appended to by rank 0 alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        jsonl.keep(path)  # a sample in a line that a crash cut is found again when the step is replayed
        self._known = {(record.shard, record.ordinal) for record in read_quarantine(path)}

    def __len__(self) -> int:
        return len(self._known)

    def judge(self, samples: int, limit: float | None) -> None:
        """Raise UserError where more than `limit` of the first `samples` samples cannot be used."""
        judged = max(samples, _FIRST_JUDGED)
        if limit is None or len(self._known) <= limit * judged:
            return
        reasons = Counter(kind(record.reason) for record in read_quarantine(self._path)).most_common()
        counted = ", ".join(f"{reason}: {count}" for reason, count in reasons)
        raise UserError(
            f"{len(self._known)} of the first {samples} samples cannot be used ({counted}), more than "
            f"data.max_bad_fraction = {limit} allows; write clean shards with `flipscale data check --fix` "
            "for a new run, or raise the limit"
        )

    def add(self, records: Iterable[BadRecord]) -> int:
        """Append the records that are new, durably, and return how many these are."""
        fresh: dict[tuple[int, int], BadRecord] = {}
        for record in records:
            if (record.shard, record.ordinal) not in self._known:
                fresh.setdefault((record.shard, record.ordinal), record)
        if fresh:
            jsonl.append(self._path, (asdict(record) for record in fresh.values()), durable=True)
            self._known.update(fresh)
        return len(fresh)


def read_quarantine(path: Path) -> list[BadRecord]:
    """Return the records in `path`; none where it does not exist. Raises UserError for other records."""
    try:
        return [BadRecord(**record) for record in jsonl.read(path)]
    except TypeError as error:
        raise UserError(f"{path} is no quarantine list ({error}); restore it") from None
