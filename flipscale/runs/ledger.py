"""ledger.jsonl: one durable line per segment, so that the samples of all segments add up to the run's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, cast

from flipscale import jsonl
from flipscale.documents import parse_object
from flipscale.errors import Reason, UserError
from flipscale.files import overwrite, read_regular, write_durably
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import TRANSIENT
from flipscale.runs.noted_starts import time_of_leaving
from flipscale.runs.records import Record, integer, misread_key, number, text, texts

_RETRIED: frozenset[Reason] = frozenset({*TRANSIENT, "out_of_memory"})
"""Ends after which a job may start by itself. If the kernel killed a process for its memory, the batch
script has the job started again, and Slurm's log names the cause."""


_ROOM = 4096  # bytes of segment.json that are kept for the end of the segment


@dataclass(frozen=True)
class LedgerLine:
    """One segment of the run.

    segment.json holds a line as well: that of the segment under way, which has no end yet. Its `samples_to`
    is that of the newest checkpoint, and its `digest` the one at `samples_from`.

    Attributes:
        segment: Number of the segment in the run, from 0.
        attempt: Name of the start; see `Heartbeat.attempt`.
        job_id: Slurm's job id; empty without Slurm.
        restarts: How often Slurm had requeued the job.
        host: Host name of the leading process.
        nodes: Names of all nodes.
        world_size: Number of processes.
        started: Start of the job, or of the leading process if that is not known, ISO time in UTC.
        ended: End of the segment, ISO time in UTC; empty while it is under way.
        samples_from: Samples seen at the start of the segment.
        samples_to: Samples seen at its last checkpoint.
        digest: Order digest at `samples_to`, 16 hexadecimal digits.
        seconds: From start to end, until Slurm took the nodes back if it says so.
        gpu_seconds: Processes x seconds.
        queue_seconds: From the end of the segment before to the start of this one.
        launch_seconds: From the start of the job, in which Slurm gives it its nodes, to that of its leading
            process; part of `startup_seconds`. 0 without Slurm.
        startup_seconds: From the start to the first step.
        stop_seconds: From the request to stop to the end; None if the line has no such field.
        lost_samples: Samples trained after the last checkpoint, or rolled back; they are trained again.
        lost_seconds: The time that these samples took.
        reason: Why it ended. `killed` if it left no message, `failed_start` if it ended before a segment
            began, `rolled_back` for a line which says that newer checkpoints were damaged (its `samples_to`
            is below its `samples_from`).
        detail: Why it ended, as a sentence.
        suspects: Nodes that a failure is blamed on.
        quarantined: Records of the quarantine list at the end; None if an earlier version wrote the line.
        content: Content digest at `samples_to`, 16 hexadecimal digits; empty for a run that has none.
    """

    segment: int
    attempt: str
    job_id: str
    restarts: int
    host: str
    nodes: tuple[str, ...]
    world_size: int
    started: str
    ended: str
    samples_from: int
    samples_to: int
    digest: str
    seconds: float
    gpu_seconds: float
    queue_seconds: float
    startup_seconds: float
    stop_seconds: float | None
    lost_samples: int
    lost_seconds: float
    reason: Reason
    detail: str = ""
    suspects: tuple[str, ...] = ()
    quarantined: int | None = None
    launch_seconds: float = 0.0
    content: str = ""

    @classmethod
    def from_record(cls, record: Record) -> LedgerLine:
        """Read a line of any version: missing numbers are 0, missing strings are empty."""
        stop_seconds = record.get("stop_seconds")
        return cls(
            segment=integer(record, "segment"),
            attempt=text(record, "attempt"),
            job_id=text(record, "job_id"),
            restarts=integer(record, "restarts"),
            host=text(record, "host"),
            nodes=texts(record, "nodes"),
            world_size=integer(record, "world_size"),
            started=text(record, "started"),
            ended=text(record, "ended"),
            samples_from=integer(record, "samples_from"),
            samples_to=integer(record, "samples_to"),
            digest=text(record, "digest"),
            seconds=number(record, "seconds"),
            gpu_seconds=number(record, "gpu_seconds"),
            queue_seconds=number(record, "queue_seconds"),
            startup_seconds=number(record, "startup_seconds"),
            stop_seconds=number(record, "stop_seconds") if isinstance(stop_seconds, (int, float)) else None,
            lost_samples=integer(record, "lost_samples"),
            lost_seconds=number(record, "lost_seconds"),
            reason=cast(Reason, text(record, "reason")),  # another version may have other reasons
            detail=text(record, "detail"),
            suspects=texts(record, "suspects"),
            quarantined=None if record.get("quarantined") is None else integer(record, "quarantined"),
            launch_seconds=number(record, "launch_seconds"),
            content=text(record, "content"),
        )


def read_ledger(run: Path, required: Sequence[str] = (), *, as_written: bool = False) -> list[LedgerLine]:
    """Return all closed segments, oldest first; an empty list if the ledger is missing.

    Args:
        run: The run directory.
        required: Fields that every line must have.
        as_written: Whether the last line ends as it was written, and not when its batch script left.

    Raises:
        UserError: If a line is damaged or lacks a required field.
    """
    ledger = RunDirectory(run).ledger
    lines: list[LedgerLine] = []
    for place, record in enumerate(jsonl.read(ledger), 1):
        line = LedgerLine.from_record(record)
        missing = [key for key in required if key not in record]
        wrong = missing[0] if missing else misread_key(record, line) or _misread_time(line)
        if wrong:
            raise UserError(
                f"{ledger}, line {place} is damaged: its {wrong} is not that of a segment; restore the file"
            )
        lines.append(line)
    return lines if as_written else _until_the_job_left(run, lines)


def tail_ledger(run: Path, limit: int) -> list[LedgerLine]:
    """Return the segments in the last `limit` bytes of the ledger, oldest first; never raises."""
    lines = [LedgerLine.from_record(record) for record in jsonl.tail(RunDirectory(run).ledger, limit)]
    return _until_the_job_left(run, lines)


def lasting(line: LedgerLine, seconds: float) -> LedgerLine:
    """Return a line that lasts this long."""
    seconds = round(max(0.0, seconds), 1)
    if seconds == line.seconds:
        return line

    ends = utc(timestamp(line.started) + seconds)
    return replace(line, ended=ends, seconds=seconds, gpu_seconds=round(seconds * line.world_size, 1))


def _until_the_job_left(run: Path, lines: list[LedgerLine]) -> list[LedgerLine]:
    """Let the last line last until its batch script left its nodes; the next start corrects the others."""
    last = lines[-1] if lines else None
    if last is None or last.reason == "rolled_back" or _misread_time(last) or not last.ended:
        return lines

    left = time_of_leaving(RunDirectory(run), last.attempt)
    if left is None or left <= timestamp(last.ended):
        return lines
    return [*lines[:-1], lasting(last, left - timestamp(last.started))]


def append_to_ledger(run: Path, line: LedgerLine) -> None:
    """Append a line; it is on disk when this returns."""
    jsonl.append(RunDirectory(run).ledger, [asdict(line)], durable=True)


def write_ledger(run: Path, lines: Sequence[LedgerLine]) -> None:
    """Replace the whole ledger in one step."""
    text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
    write_durably(RunDirectory(run).ledger, text)


def write_open_segment(run: Path, line: LedgerLine) -> None:
    """Record the segment that has begun; the file is still there at the next start if this one is killed."""
    write_durably(RunDirectory(run).open_segment, json.dumps(asdict(line)) + " " * _ROOM)


def close_in_place(run: Path, line: LedgerLine) -> None:
    """Write the line of an ended segment over its open one: a full disk has no room for it in the ledger."""
    overwrite(RunDirectory(run).open_segment, json.dumps(asdict(line)))


def read_open_segment(run: Path) -> LedgerLine | None:
    """Return the segment under way; None if the file is missing or cannot be read."""
    try:
        record = parse_object(read_regular(RunDirectory(run).open_segment))
    except (OSError, ValueError):
        return None
    line = LedgerLine.from_record(record)
    whole = "segment" in record and line.started and not misread_key(record, line) and not _misread_time(line)
    return line if whole else None


def fruitless_segments(lines: Sequence[LedgerLine], since: float) -> list[LedgerLine]:
    """Return the last segments in a row that ended badly without any progress, oldest first.

    Args:
        lines: The ledger.
        since: Segments that started before this time (seconds since 1970) do not count.
    """
    fruitless: list[LedgerLine] = []
    for line in reversed(lines):
        if line.reason in ("failed_start", "rolled_back"):
            continue
        gained = line.samples_to > line.samples_from
        if gained or line.reason not in _RETRIED or timestamp(line.started) < since:
            break
        if line.reason != "preempted":
            fruitless.append(line)
    return fruitless[::-1]


def _misread_time(line: LedgerLine) -> str | None:
    """Return the first key whose value is not an ISO time with a zone; None if both are, or are empty."""
    for key, stamp in (("started", line.started), ("ended", line.ended)):
        try:
            if stamp and datetime.fromisoformat(stamp).tzinfo is None:
                return key
        except ValueError:
            return key
    return None


def utc(seconds: float, precision: Literal["milliseconds", "seconds"] = "milliseconds") -> str:
    """Return the ISO time in UTC of a time in seconds since 1970."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec=precision)


def timestamp(stamp: str) -> float:
    """Return the seconds since 1970 of an ISO time with a zone; 0.0 if it is empty."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
