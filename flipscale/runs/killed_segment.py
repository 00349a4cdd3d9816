"""The line of a segment that no process could close, by its last heartbeats, metrics and Slurm's log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from flipscale.progress import Progress
from flipscale.runs.failures import Failure, slurm_verdict
from flipscale.runs.heartbeat import Heartbeat, read_heartbeats
from flipscale.runs.ledger import LedgerLine, read_open_segment, timestamp, utc
from flipscale.runs.metrics import tail_metrics

_METRICS_TAIL = 64 * 1024  # bytes; the last line counts


def close_killed(run: Path, killed: LedgerLine, resumed: Progress) -> LedgerLine:
    """Close a segment with what is known of it. All durations come from clocks that nobody sets.

    Args:
        run: The run directory.
        killed: The open segment.
        resumed: Progress of the checkpoint that the run is resumed from.
    """
    beats = read_heartbeats(run, killed.attempt)
    # If the run resumes from before the segment, a line of its own says that it was rolled back.
    gained = resumed.samples_seen >= killed.samples_from
    committed = resumed.samples_seen if gained else killed.samples_from
    reached = max([committed, *(beat.samples_seen for beat in beats), *_logged(run, killed)])
    lost = reached - committed
    trained = reached - killed.samples_from

    seconds = _seconds(killed, beats)
    startup = killed.startup_seconds if trained > 0 else seconds
    training = max(0.0, _seconds_to_step(killed, beats, seconds) - startup)
    failure = _failure(run, killed, beats)

    return replace(
        killed,
        samples_to=committed,
        digest=resumed.digest.hex() if gained else killed.digest,
        content=resumed.content_hex if gained else killed.content,
        ended=utc(timestamp(killed.started) + seconds),
        seconds=round(seconds, 1),
        gpu_seconds=round(seconds * killed.world_size, 1),
        startup_seconds=round(startup, 1),
        lost_samples=lost,
        lost_seconds=round(training * lost / trained, 1) if trained > 0 else 0.0,
        reason=failure.kind,
        detail=failure.message,
        suspects=failure.suspects,
    )


def suspects_without_a_line(run: Path, lines: Sequence[LedgerLine]) -> tuple[str, ...]:
    """Return the nodes that the next start will find to blame for the end of the segment without a line.

    Args:
        run: The run directory.
        lines: The ledger, oldest first.
    """
    segment = read_open_segment(run)
    if segment is None or (lines and segment.segment <= lines[-1].segment):
        return ()
    if segment.ended:
        return segment.suspects
    return _failure(run, segment, read_heartbeats(run, segment.attempt)).suspects


def _logged(run: Path, killed: LedgerLine) -> list[int]:
    """Return the samples of the last metrics line, if the killed segment wrote it: heartbeats are rarer."""
    last = tail_metrics(run, _METRICS_TAIL)[-1:]
    # A segment whose start-up is over has dropped the lines of those before; older versions do not note that.
    if last and (killed.startup_seconds or last[0].finite("time") >= timestamp(killed.started)):
        return [last[0].samples]
    return []


def _seconds(killed: LedgerLine, beats: Sequence[Heartbeat]) -> float:
    """Return for how long a killed segment certainly lasted."""
    signs = [killed.launch_seconds + beat.seconds for beat in beats if beat.seconds]
    if not signs:  # of an older version
        signs = [beat.time - timestamp(killed.started) for beat in beats]

    return max([killed.startup_seconds, 0.0, *signs])


def _seconds_to_step(killed: LedgerLine, beats: Sequence[Heartbeat], seconds: float) -> float:
    """Return how long after the start of a killed segment its last step ended."""
    steps = [killed.launch_seconds + beat.seconds_to_step for beat in beats if beat.seconds_to_step]
    return max(steps, default=seconds)


def _failure(run: Path, killed: LedgerLine, beats: Sequence[Heartbeat]) -> Failure:
    """Return why a killed segment ended, by its last heartbeats and Slurm's log."""
    failed = [beat for beat in beats if beat.state == "failed"]
    log = run / "logs" / f"{Path(killed.job_id).name}_0_log.err"
    local_start = datetime.fromtimestamp(timestamp(killed.started))
    from_slurm = slurm_verdict(log, local_start) if killed.job_id else None

    if not failed:
        return Failure(from_slurm or "killed", "its processes ended without a message")

    # A cause comes before its consequences, which are lost processes.
    first = min(failed, key=lambda beat: (beat.kind == "lost_process", beat.time))
    kind = first.kind or "code"
    suspects = first.suspects
    if first.kind == "lost_process":
        kind = from_slurm or kind
        suspects = tuple(dict.fromkeys(beat.node for beat in beats if beat.state != "failed"))

    return Failure(kind, f"rank {first.rank} on {first.node}: {first.message}", suspects)
