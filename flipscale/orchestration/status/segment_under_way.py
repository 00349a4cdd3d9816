"""The open segment as it is now: what it has gained by metrics and heartbeats, and what it has cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flipscale.orchestration.status.history import SegmentStatus, segment_of, unix_time
from flipscale.orchestration.status.liveness import ProcessStatus
from flipscale.runs.ledger import LedgerLine
from flipscale.runs.snapshot import RunFiles


def segment_under_way(
    line: LedgerLine, files: RunFiles, processes: Sequence[ProcessStatus], *, lost: bool
) -> SegmentStatus:
    """Return the open segment with its gains so far, by metrics and heartbeats.

    Args:
        line: The open segment.
        files: The files of the run.
        processes: The processes of the segment.
        lost: Whether it is over, although the ledger has no line of it.
    """
    started = unix_time(line.started) or files.now
    signs = [files.changed, *(files.now - process.age_seconds for process in processes)]
    seconds = round(max(0.0, (min(files.now, max(signs)) if lost else files.now) - started), 1)
    begun = segment_of(replace(line, detail="", seconds=seconds, gpu_seconds=seconds * line.world_size))
    trained = has_trained(line, files)
    seen = [files.metrics[-1].samples] if trained else []
    seen += [process.samples for process in processes if not process.ended]

    reached = files.committed if lost else max([begun.samples_from, *seen])
    return replace(
        begun,
        reason="lost" if lost else "running",
        ended=begun.ended if lost else None,
        samples_to=max(begun.samples_from, reached),
        startup_seconds=line.startup_seconds if trained or line.startup_seconds else seconds,
    )


def has_trained(segment: LedgerLine, files: RunFiles) -> bool:
    """Return whether the open segment wrote the last line of the metrics."""
    started = unix_time(segment.started)
    return started is not None and any(line.finite("time") >= started for line in files.metrics[-1:])
