"""starts.jsonl: when the batch script of each start began and left, by the script itself.

No process of a start sees when the job leaves its nodes, and a start that fails early leaves nothing else.
The batch script needs only its shell for these notes. They may be damaged, so that readers never raise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from flipscale import jsonl
from flipscale.runs.directory import RunDirectory
from flipscale.runs.records import number, text

NAME: Final = "starts.jsonl"
"""The name of the file in the run directory."""
BEGAN: Final = "began"
"""The key of the first note of a start."""
LEFT: Final = "left"
"""The key of the second note of a start."""

_TAIL = 4 * 2**20  # bytes: the notes of some 40,000 starts
_LAST = 4096  # bytes: the last notes
_LATEST = 2.0**33  # seconds since 1970


@dataclass(frozen=True)
class NotedStart:
    """A start of a job, as its batch script noted it.

    Attributes:
        attempt: The name of the start; see `Heartbeat.attempt`.
        began: When the script began, in seconds since 1970.
        left: When it left; None if it was killed, or is there.
    """

    attempt: str
    began: float
    left: float | None = None


def read_noted_starts(run: RunDirectory, limit: int = _TAIL) -> list[NotedStart]:
    """Return the starts in the last `limit` bytes of the file, oldest first; never raises."""
    starts: dict[str, NotedStart] = {}
    for record in jsonl.tail(run.starts, limit):
        attempt = text(record, "attempt")
        began = _time(record, BEGAN)
        left = _time(record, LEFT)
        if began is not None:
            starts[attempt] = NotedStart(attempt, began)
        elif left is not None and attempt in starts:
            starts[attempt] = replace(starts[attempt], left=left)
    return list(starts.values())


def time_of_leaving(run: RunDirectory, attempt: str) -> float | None:
    """Return when the batch script of a recent start left, in seconds since 1970; None if that is unknown."""
    notes = [record for record in jsonl.tail(run.starts, _LAST) if text(record, "attempt") == attempt]
    return _time(notes[-1], LEFT) if notes and attempt else None


def _time(record: dict[str, object], key: str) -> float | None:
    seconds = number(record, key)
    return seconds if math.isfinite(seconds) and 0 < seconds < _LATEST else None
