"""A segment whose segment.json is damaged or gone: what the heartbeats of its processes still say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from flipscale.progress import Progress
from flipscale.runs.heartbeat import attempt_before, read_heartbeats
from flipscale.runs.ledger import LedgerLine, utc


def rebuild_segment(
    run: Path, lines: Sequence[LedgerLine], resumed: Progress, current: str
) -> LedgerLine | None:
    """Return the segment before this start as far as it is known.

    Its samples are right. Its start is not known, so that it has no duration. It is as it was at its first
    sample, which is what remains of it if the run resumes from before the segment.

    Args:
        run: The run directory.
        lines: The closed segments, oldest first.
        resumed: Progress of the checkpoint that the run is resumed from.
        current: Name of this start.

    Returns:
        The segment; None if the ledger has closed all that was trained, or if nothing is known.
    """
    attempt = attempt_before(run, current)
    if any(line.attempt == attempt for line in lines):
        attempt = ""

    before = lines[-1] if lines else None
    samples_from = before.samples_to if before else 0
    if not attempt and (not before or resumed.samples_seen <= samples_from):
        return None

    beats = read_heartbeats(run, attempt) if attempt else []
    nodes = tuple(dict.fromkeys(beat.node for beat in beats))
    job_id, _, restarts = attempt.rpartition(".")
    under_slurm = job_id.replace("_", "").isdigit() and restarts.isdigit()
    record = {
        "segment": len(lines),
        "attempt": attempt,
        "job_id": job_id if under_slurm else "",
        "restarts": int(restarts) if under_slurm else 0,
        "host": nodes[0] if nodes else "",
        "nodes": list(nodes),
        "world_size": beats[0].world_size if beats else 0,
        "started": utc(min((beat.time - beat.seconds for beat in beats), default=time.time())),
        "samples_from": samples_from,
        "samples_to": samples_from,
        "digest": before.digest if before else resumed.digest.hex(),
        "content": before.content if before else resumed.content_hex,
        "stop_seconds": 0.0,
        "reason": "killed",
    }
    return LedgerLine.from_record(record)
