"""The line of a roll-back: the run resumes from before the end of its last segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flipscale.progress import Progress
from flipscale.runs.ledger import LedgerLine


def roll_back(lines: Sequence[LedgerLine], resumed: Progress) -> LedgerLine:
    """Return the line which says that the run resumes from an older checkpoint.

    Its lost samples are those of the newer ones, which were trained and are trained again. Their cost is
    already in the lines of their segments.

    Args:
        lines: The ledger so far, oldest first.
        resumed: Progress of the checkpoint that the run is resumed from.
    """
    last = lines[-1]
    return replace(
        last,
        segment=last.segment + 1,
        started=last.ended,
        samples_from=last.samples_to,
        samples_to=resumed.samples_seen,
        digest=resumed.digest.hex(),
        content=resumed.content_hex,
        seconds=0.0,
        gpu_seconds=0.0,
        queue_seconds=0.0,
        launch_seconds=0.0,
        startup_seconds=0.0,
        stop_seconds=0.0,
        lost_samples=max(0, last.samples_to - resumed.samples_seen),
        lost_seconds=round(_training_seconds(lines, resumed.samples_seen), 1),
        reason="rolled_back",
        detail="newer checkpoints were damaged; their samples are trained again",
        suspects=(),
    )


def _training_seconds(lines: Sequence[LedgerLine], samples: int) -> float:
    """Return how long the newest segments trained for what the ledger has beyond `samples`."""
    seconds = 0.0
    top = lines[-1].samples_to
    for line in reversed(lines):
        gained = line.samples_to - line.samples_from
        # What a former roll-back has undone is beyond `top`, and is counted there.
        undone = min(line.samples_to, top) - max(line.samples_from, samples)
        if undone > 0:
            training = line.seconds - line.startup_seconds - line.lost_seconds
            seconds += max(0.0, training) * undone / gained
            top = line.samples_from

    return seconds
