"""quarantine.jsonl: every sample or shard that could not be used, and the reason; one line each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flipscale import jsonl
from flipscale.addresses import without_secrets
from flipscale.errors import UserError
from flipscale.files import write_durably

_FEWEST_JUDGED = 1000  # samples; a share of fewer is not significant


class BadSample(Exception):
    """A sample that training cannot use. The message is the reason that the quarantine list records."""


@dataclass(frozen=True)
class BadRecord:
    """The record of one unusable sample.

    A shard that is cut short is recorded under the ordinal of the first sample that it lost.

    Attributes:
        shard: Number of the shard in the index.
        ordinal: Number of the sample in the shard.
        path: Path of the shard.
        key: Key of the sample in the shard.
        reason: Why the sample cannot be used.
    """

    shard: Annotated[int, Field(ge=0, lt=1 << 23)]
    ordinal: Annotated[int, Field(ge=0, lt=1 << 40)]
    path: str
    key: str
    reason: str


def kind(reason: str) -> str:
    """Return a reason without its numbers, which differ from image to image; "UTF-8" keeps its own."""
    return re.sub(r"(?<!\w)(?<![A-Za-z]-)\d+(?!\w)", "N", reason)


class Quarantine:
    """The list of a run's unusable samples, without repeats. Only rank 0 appends to it.

    Args:
        path: The file, which may not exist yet.

    Raises:
        UserError: If the file holds other records.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Drop a line that a crash cut: the replay of its step finds the sample again.
        jsonl.keep(path)
        self._known = {(record.shard, record.ordinal) for record in read_quarantine(path)}

    def __len__(self) -> int:
        return len(self._known)

    def judge(self, samples: int, limit: float | None) -> None:
        """Check the share of unusable samples.

        Args:
            samples: Samples seen so far.
            limit: Largest share that may be unusable, in [0, 1]; None for any.

        Raises:
            UserError: If the share is above the limit.
        """
        judged = max(samples, _FEWEST_JUDGED)
        if limit is None or len(self._known) <= limit * judged:
            return

        reasons = Counter(kind(record.reason) for record in read_quarantine(self._path)).most_common()
        counted = ", ".join(f"{reason}: {count}" for reason, count in reasons)
        raise UserError(
            f"{len(self._known)} of the first {samples} samples cannot be used ({counted}), more than "
            f"data.max_bad_fraction = {limit} allows; write clean shards with `flipscale data check JOB "
            "--fix DIR` for a new run, or raise the limit"
        )

    def add(self, records: Iterable[BadRecord]) -> int:
        """Append the new records durably, and return their number."""
        fresh: dict[tuple[int, int], BadRecord] = {}
        for record in records:
            if (record.shard, record.ordinal) not in self._known:
                fresh.setdefault((record.shard, record.ordinal), record)

        if fresh:
            jsonl.append(self._path, (_line(record) for record in fresh.values()), durable=True)
            self._known.update(fresh)

        return len(fresh)


def scan_quarantine(path: Path) -> Iterator[BadRecord]:
    """Yield the records of a list of any length, for a look from outside; never raises.

    A number that is missing is 0, and a text that is missing is empty.
    """
    for record in jsonl.scan(path):
        shard = record.get("shard")
        ordinal = record.get("ordinal")
        yield BadRecord(
            shard=shard if isinstance(shard, int) else 0,
            ordinal=ordinal if isinstance(ordinal, int) else 0,
            path=str(record.get("path", "")),
            key=str(record.get("key", "")),
            reason=str(record.get("reason", "")),
        )


def read_quarantine(path: Path) -> list[BadRecord]:
    """Return the records of a quarantine list; none if the file does not exist.

    Raises:
        UserError: If the file holds other records.
    """
    return jsonl.read_as(BadRecord, path)


def count_quarantine(path: Path) -> int | None:
    """Return the number of records of a quarantine list; None if the file does not exist.

    Raises:
        UserError: If the file holds other records.
    """
    records = read_quarantine(path)
    return len(records) if path.exists() else None


def write_quarantine(records: Iterable[BadRecord], path: Path) -> None:
    """Replace a quarantine list."""
    write_durably(path, "".join(json.dumps(_line(record)) + "\n" for record in records))


def _line(record: BadRecord) -> dict[str, Any]:
    return asdict(record) | {"path": without_secrets(record.path)}
