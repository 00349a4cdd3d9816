"""Writes the ledger: opens a segment at a start, closes it at its end, and accounts for killed segments."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flipscale import jsonl
from flipscale.data.quarantine import count_quarantine
from flipscale.errors import UserError
from flipscale.files import set_aside
from flipscale.progress import Progress
from flipscale.runs.damaged_segment import rebuild_segment
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import Failure, slurm_verdict
from flipscale.runs.heartbeat import Heartbeat, read_heartbeats
from flipscale.runs.ledger import (
    LedgerLine,
    append_to_ledger,
    read_ledger,
    read_open_segment,
    timestamp,
    utc,
    write_open_segment,
)

if TYPE_CHECKING:
    from flipscale.distributed.world import World

_log = logging.getLogger(__name__)


class LedgerWriter:
    """The ledger of one start: the leading process opens it, and closes it with the reason of the end."""

    def __init__(self, run: Path, resumed: Progress, world: World, attempt: str) -> None:
        """Account for a killed segment before this one, and open this segment.

        Args:
            run: The run directory.
            resumed: Progress of the checkpoint that the run is resumed from.
            world: The processes of this start.
            attempt: Name of the start; see `Heartbeat.attempt`.

        Raises:
            UserError: If the ledger is damaged.
        """
        self._run = RunDirectory(run)
        jsonl.keep(self._run.ledger)
        _account_for_the_past(self._run, resumed, attempt)

        lines = read_ledger(run)
        _warn_of_shorter_list(self._run, lines)
        self._began = psutil.Process().create_time()
        self._training_from: float | None = None
        self._first = LedgerLine(
            segment=len(lines),
            attempt=attempt,
            job_id=world.place.job_id,
            restarts=world.place.restarts,
            host=socket.gethostname(),
            nodes=tuple(world.place.nodes or (world.place.node,)),
            world_size=world.size,
            started=utc(self._began),
            ended="",
            samples_from=resumed.samples_seen,
            samples_to=resumed.samples_seen,
            digest=resumed.digest.hex(),
            seconds=0.0,
            gpu_seconds=0.0,
            queue_seconds=_seconds_in_queue(lines, self._began),
            startup_seconds=0.0,
            stop_seconds=0.0,
            lost_samples=0,
            lost_seconds=0.0,
            reason="killed",
        )
        write_open_segment(run, self._first)

    def training(self) -> None:
        """Note that the first step is about to begin."""
        self._training_from = time.time()

    def close(
        self, committed: Progress, reached: Progress, failure: Failure, *, stop_seconds: float = 0.0
    ) -> None:
        """Write the segment's line.

        Args:
            committed: Progress of the last checkpoint on disk.
            reached: Progress of the training, which may be further.
            failure: Why it ended; its kind is `done` for a spent budget.
            stop_seconds: Seconds since the request to stop.
        """
        now = time.time()
        seconds = now - self._began
        trained_from = self._training_from or now
        lost = reached.samples_seen - committed.samples_seen
        trained = reached.samples_seen - self._first.samples_from

        line = replace(
            self._first,
            ended=utc(now),
            samples_to=committed.samples_seen,
            digest=committed.digest.hex(),
            seconds=round(seconds, 1),
            gpu_seconds=round(seconds * self._first.world_size, 1),
            startup_seconds=round(trained_from - self._began, 1),
            stop_seconds=round(stop_seconds, 1),
            lost_samples=lost,
            lost_seconds=round((now - trained_from) * lost / trained, 1) if trained else 0.0,
            reason=failure.kind,
            detail=failure.message,
            suspects=failure.suspects,
            quarantined=_quarantined(self._run),
        )

        # The line first: a crash in between leaves the open segment as well, which the next start removes.
        append_to_ledger(self._run.path, line)
        with suppress(OSError):
            self._run.open_segment.unlink()


def _account_for_the_past(run: RunDirectory, resumed: Progress, attempt: str) -> None:
    """Add the lines that no process could write: of a killed segment, and of a roll-back behind it."""
    lines = read_ledger(run.path)
    digest = resumed.digest.hex()

    killed = _open_segment(run, lines, resumed, attempt)
    if killed is not None and (not lines or killed.segment > lines[-1].segment):
        line = replace(_closed(run.path, killed, resumed), digest=digest)
        append_to_ledger(run.path, line)
        lines.append(line)
    run.open_segment.unlink(missing_ok=True)

    if lines and lines[-1].samples_to != resumed.samples_seen:
        append_to_ledger(run.path, _roll_back(lines[-1], resumed.samples_seen, digest))


def _open_segment(
    run: RunDirectory, lines: Sequence[LedgerLine], resumed: Progress, attempt: str
) -> LedgerLine | None:
    """Return the segment that was not closed; a damaged record of it is set aside and made again."""
    segment = read_open_segment(run.path)
    if segment is not None:
        return segment

    if os.path.lexists(run.open_segment):
        aside = set_aside(run.open_segment)
        _log.warning(
            "%s is damaged and is now %s; the ledger gets what the heartbeats say",
            run.open_segment,
            aside.name,
        )
    return rebuild_segment(run.path, lines, resumed, attempt)


def _roll_back(last: LedgerLine, samples: int, digest: str) -> LedgerLine:
    """Return the line of a roll-back: the run resumes from before the end of its last segment."""
    return replace(
        last,
        segment=last.segment + 1,
        started=last.ended,
        samples_from=last.samples_to,
        samples_to=samples,
        digest=digest,
        seconds=0.0,
        gpu_seconds=0.0,
        queue_seconds=0.0,
        startup_seconds=0.0,
        stop_seconds=0.0,
        lost_samples=0,
        lost_seconds=0.0,
        reason="rolled_back",
        detail="newer checkpoints were damaged; their samples are trained again",
        suspects=(),
    )


def _closed(run: Path, killed: LedgerLine, resumed: Progress) -> LedgerLine:
    """Close a killed segment with what its last heartbeats and Slurm's log say about it."""
    started = timestamp(killed.started)
    beats = read_heartbeats(run, killed.attempt)
    last = max((beat.time for beat in beats), default=_last_metrics(run, started))
    seconds = max(0.0, last - started)

    lost = max([beat.samples_seen for beat in beats] + [resumed.samples_seen]) - resumed.samples_seen
    trained = lost + resumed.samples_seen - killed.samples_from
    failure = _failure_of_killed(run, killed, beats)

    return replace(
        killed,
        samples_to=resumed.samples_seen,
        ended=utc(started + seconds),
        seconds=round(seconds, 1),
        gpu_seconds=round(seconds * killed.world_size, 1),
        lost_samples=lost,
        lost_seconds=round(seconds * lost / trained, 1) if trained > 0 else 0.0,
        reason=failure.kind,
        detail=failure.message,
        suspects=failure.suspects,
        quarantined=_quarantined(RunDirectory(run)),
    )


def _failure_of_killed(run: Path, killed: LedgerLine, beats: Sequence[Heartbeat]) -> Failure:
    """Return why a killed segment ended, by its last heartbeats and Slurm's log."""
    failed = [beat for beat in beats if beat.state == "failed"]
    log = run / "logs" / f"{killed.job_id}_0_log.err"
    local_start = datetime.fromtimestamp(timestamp(killed.started))
    from_slurm = slurm_verdict(log, local_start) if killed.job_id else None

    if not failed:
        return Failure(from_slurm or "killed", "its processes left no word")

    # A cause comes before its consequences, which are lost processes.
    first = min(failed, key=lambda beat: (beat.kind == "lost_process", beat.time))
    kind = first.kind or "code"
    suspects = first.suspects
    if first.kind == "lost_process":
        kind = from_slurm or kind
        suspects = tuple(dict.fromkeys(beat.node for beat in beats if beat.state != "failed"))

    return Failure(kind, f"rank {first.rank} on {first.node}: {first.message}", suspects)


def _quarantined(run: RunDirectory) -> int | None:
    """Return the number of records in the quarantine list; None if the list is damaged."""
    try:
        return count_quarantine(run.quarantine) or 0
    except (UserError, OSError):
        return None


def _warn_of_shorter_list(run: RunDirectory, lines: Sequence[LedgerLine]) -> None:
    """Say that records of the quarantine list are lost. Training is right without them; the audit is not."""
    counted = max((line.quarantined or 0 for line in lines), default=0)
    held = _quarantined(run)
    if held is not None and held < counted:
        _log.warning(
            "%s holds %d records, but the ledger counted %d: restore it, or `flipscale data audit` fails",
            run.quarantine,
            held,
            counted,
        )


def _seconds_in_queue(lines: Sequence[LedgerLine], now: float) -> float:
    if not lines or not lines[-1].ended:
        return 0.0

    return round(max(0.0, now - timestamp(lines[-1].ended)), 1)


def _last_metrics(run: Path, otherwise: float) -> float:
    """Return when metrics.jsonl was last written, in seconds since 1970; `otherwise` if there is none."""
    try:
        return RunDirectory(run).metrics.stat().st_mtime
    except FileNotFoundError:
        return otherwise
