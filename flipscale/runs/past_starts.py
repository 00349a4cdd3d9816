"""What Slurm says about the starts of a run, and the ledger with it: starts and time that no process saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flipscale.runs.ledger import LedgerLine, lasting, timestamp, utc

_CLOCKS = 5.0
"""Seconds by which the clocks of Slurm's controller and of a node may differ."""


@dataclass(frozen=True)
class JobStart:
    """One start of a job that has ended, by Slurm or by its batch script; a requeued job has several.

    Attributes:
        job_id: Id of the job.
        started: When Slurm gave it its nodes, in seconds since 1970.
        ended: When Slurm took them back.
        state: How it ended: COMPLETED, FAILED, REQUEUED, ...; empty if only its batch script noted it.
    """

    job_id: str
    started: float
    ended: float
    state: str


@dataclass(frozen=True)
class PastStart(JobStart):
    """One start of a job of the run.

    Attributes:
        processes: Number of training processes that were asked for.
    """

    processes: int

    @property
    def seconds(self) -> float:
        """For how long the start held its nodes."""
        return max(0.0, self.ended - self.started)


@dataclass(frozen=True)
class SlurmTimes:
    """The times of a run by Slurm, when a start of it opens the ledger.

    Attributes:
        past: The starts that have ended, oldest first; those that Slurm still knows.
        seconds_of_job: For how long this start has held its nodes; None if Slurm did not say it.
    """

    past: tuple[PastStart, ...] = ()
    seconds_of_job: float | None = None


def with_past_starts(lines: Sequence[LedgerLine], past: Sequence[PastStart]) -> list[LedgerLine]:
    """Return the ledger with the durations that Slurm measured, and with the starts that have no line.

    Args:
        lines: The ledger, oldest first.
        past: The starts of the run that have ended.
    """
    corrected = list(lines)
    missing = list(past)
    for place in reversed(range(len(corrected))):
        line = corrected[place]
        start = next((start for start in reversed(missing) if _is_of(line, start)), None)
        if start is not None:
            missing.remove(start)
            # A line of an older version begins with its leading process, and not with the job.
            before = max(0.0, timestamp(line.started) - start.started)
            # A batch script that Slurm ends leaves before its processes; Slurm itself is right in any case.
            least = 0.0 if start.state else line.seconds
            corrected[place] = lasting(line, max(least, start.seconds - before))

    for start in _without_line(missing, lines, past):
        corrected.append(_failed_start(corrected, start))
    return corrected


def _is_of(line: LedgerLine, start: PastStart) -> bool:
    """Return whether a line is that of a start."""
    if line.reason == "rolled_back" or line.job_id != start.job_id:
        return False
    return start.started - _CLOCKS <= timestamp(line.started) <= start.ended + _CLOCKS


def _without_line(
    missing: Sequence[PastStart], lines: Sequence[LedgerLine], past: Sequence[PastStart]
) -> list[PastStart]:
    """Return the starts that ended before their segment began.

    A line that could not be matched, because clocks differ, must not be counted twice: a job has as many
    starts without a line as it has more starts than lines.
    """
    failed: list[PastStart] = []
    for job_id in dict.fromkeys(start.job_id for start in missing):
        starts = sum(start.job_id == job_id for start in past)
        booked = sum(line.job_id == job_id and line.reason != "rolled_back" for line in lines)
        own = [start for start in missing if start.job_id == job_id]
        failed += own[: max(0, starts - booked)]
    return sorted(failed, key=lambda start: start.started)


def _failed_start(lines: Sequence[LedgerLine], start: PastStart) -> LedgerLine:
    last = lines[-1] if lines else None
    seconds = round(start.seconds, 1)
    record = {
        "segment": last.segment + 1 if last else 0,
        "job_id": start.job_id,
        "world_size": start.processes,
        "started": utc(start.started),
        "ended": utc(start.ended),
        "samples_from": last.samples_to if last else 0,
        "samples_to": last.samples_to if last else 0,
        "digest": last.digest if last else "0" * 16,
        "content": last.content if last else "",
        "seconds": seconds,
        "gpu_seconds": round(seconds * start.processes, 1),
        "queue_seconds": round(max(0.0, start.started - timestamp(last.ended)), 1) if last else 0.0,
        "startup_seconds": seconds,
        "stop_seconds": 0.0,
        "reason": "failed_start",
        "detail": "it ended before its segment began" + (f" (Slurm: {start.state})" if start.state else ""),
    }
    return LedgerLine.from_record(record)
