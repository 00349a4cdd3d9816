"""How a run spent its time: its segments, their gains, and the cost of start-ups, replays and queues.

The functions are pure: they work on what was read from ledger.jsonl, segment.json and submissions.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from flipscale.runs.failures import TRANSIENT
from flipscale.runs.ledger import LedgerLine, utc
from flipscale.runs.submissions import RecordedJob


@dataclass(frozen=True)
class SegmentStatus:
    """A start of the run: a line of the ledger, or the segment that is under way."""

    segment: int
    reason: str
    """The ledger's reason; for a segment under way: running, or lost (open, but without a sign of life)."""
    detail: str
    started: str  # UTC
    ended: str | None  # UTC
    job_id: str
    restarts: int
    nodes: tuple[str, ...]
    world_size: int
    samples_from: int
    samples_to: int
    seconds: float
    gpu_hours: float  # processes x seconds
    startup_seconds: float  # from its start to its first step
    queue_seconds: float  # from the end of the segment before, or its submission, to its start
    lost_samples: int  # trained after the last committed checkpoint; the next segment trains them again
    lost_seconds: float
    stop_seconds: float | None  # from the request to stop to the committed checkpoint
    suspects: tuple[str, ...]  # nodes that are blamed for its end

    @property
    def samples(self) -> int:
        """The samples that the segment brought the run forward."""
        return self.samples_to - self.samples_from


@dataclass(frozen=True)
class LostTime:
    """Wall-clock seconds in which nothing was gained."""

    startup_seconds: float
    replay_seconds: float
    queue_seconds: float
    total_seconds: float
    gpu_hours: float
    """Processes x hours of start-up and replay; a queue holds no GPUs."""


def needs_a_person(reason: str) -> bool:
    """Return whether the run waits for a person after such an end, and not for the queue."""
    return reason not in TRANSIENT and reason not in ("running", "lost", "failed_start", "rolled_back")


def segments_of(
    ledger: Sequence[LedgerLine],
    submissions: Sequence[RecordedJob],
    under_way: SegmentStatus | None,
) -> tuple[SegmentStatus, ...]:
    """Return all segments, oldest first; a missing `queue_seconds` is computed from the times.

    Args:
        ledger: Lines of the ledger, oldest first.
        submissions: Records of submissions.jsonl, oldest first.
        under_way: The open segment, if any.
    """
    submitted = [job.time for job in submissions]
    segments: list[SegmentStatus] = []
    for segment in (*map(segment_of, ledger), *([under_way] if under_way else [])):
        before = next((past for past in reversed(segments) if past.reason != "rolled_back"), None)
        segments.append(_with_queue(segment, before, submitted))
    return tuple(segments)


def segment_of(line: LedgerLine) -> SegmentStatus:
    """Return the status of a segment by its line of the ledger."""
    return SegmentStatus(
        segment=line.segment,
        reason=line.reason,
        detail=line.detail,
        started=line.started,
        ended=line.ended or _plus(line.started, line.seconds),
        job_id=line.job_id,
        restarts=line.restarts,
        nodes=line.nodes or ((line.host,) if line.host else ()),
        world_size=line.world_size,
        samples_from=line.samples_from,
        samples_to=line.samples_to,
        seconds=line.seconds,
        gpu_hours=round(line.gpu_seconds / 3600, 4),
        startup_seconds=line.startup_seconds,
        queue_seconds=line.queue_seconds,
        lost_samples=line.lost_samples,
        lost_seconds=line.lost_seconds,
        stop_seconds=line.stop_seconds,
        suspects=line.suspects,
    )


def lost_time(segments: Sequence[SegmentStatus], waiting_now: float) -> LostTime:
    """Sum what the segments lost.

    Args:
        segments: All segments, oldest first.
        waiting_now: How long the next segment has been in the queue, in seconds.
    """
    startup = sum(segment.startup_seconds for segment in segments)
    replay = sum(segment.lost_seconds for segment in segments)
    queue = waiting_now + sum(segment.queue_seconds for segment in segments)
    held = sum(s.world_size * (s.startup_seconds + s.lost_seconds) for s in segments) / 3600
    return LostTime(
        round(startup, 1),
        round(replay, 1),
        round(queue, 1),
        round(startup + replay + queue, 1),
        round(held, 4),
    )


def effective_speed(segments: Sequence[SegmentStatus], waiting_now: float) -> float | None:
    """Return the samples gained per second of wall time, queues, start-ups and replays included.

    Returns:
        The speed, or None before there is history: no segment has ended, or nothing was gained.
    """
    if not any(segment.ended for segment in segments):
        return None
    gained = segments[-1].samples_to - segments[0].samples_from
    wall = waiting_now + sum(segment.seconds + segment.queue_seconds for segment in segments)
    return gained / wall if gained > 0 and wall > 0 else None


def waiting_seconds(
    segments: Sequence[SegmentStatus], submissions: Sequence[RecordedJob], now: float
) -> float:
    """Return for how many seconds the queued job has waited.

    Args:
        segments: All segments, oldest first.
        submissions: Records of submissions.jsonl, oldest first.
        now: The current time, in seconds since 1970.
    """
    submitted = [job.time for job in submissions]
    return round(_queue_before(now, segments[-1] if segments else None, submitted), 1)


def unix_time(stamp: str) -> float | None:
    """Return an ISO time as seconds since 1970 (UTC if it has no zone); None if it is not an ISO time."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _with_queue(
    segment: SegmentStatus, before: SegmentStatus | None, submitted: Sequence[float]
) -> SegmentStatus:
    started = unix_time(segment.started)
    if started is None or segment.reason == "rolled_back":
        return segment
    if segment.queue_seconds and not (before and needs_a_person(before.reason)):
        return segment
    return replace(segment, queue_seconds=round(_queue_before(started, before, submitted), 1))


def _queue_before(moment: float, before: SegmentStatus | None, submitted: Sequence[float]) -> float:
    """Return the seconds until `moment` in which the run waited for the cluster, not for a person."""
    ended = unix_time(before.ended) if before and before.ended else None
    submission = max((time for time in submitted if time <= moment), default=None)
    if before is not None and ended is not None and not needs_a_person(before.reason):
        since = ended
    elif submission is not None:
        since = max(submission, ended or 0.0)
    else:
        return 0.0
    return max(0.0, moment - since)


def _plus(started: str, seconds: float) -> str | None:
    begin = unix_time(started)
    if begin is None:
        return None
    return utc(begin + seconds, "seconds")
