"""Starts and segments that bring no progress: how many in a row end a run.

The module is light: a batch script asks it in the seconds that Slurm leaves to a job, without torch.
"""

from __future__ import annotations

from pathlib import Path

from flipscale.distributed.placement import Placement
from flipscale.errors import RunError, UserError
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import fruitless_segments, read_ledger, read_open_segment
from flipscale.runs.submissions import read_submissions

MOST_FRUITLESS = 3
"""Segments in a row that may end badly without any progress before the run is not started again."""


def check_progress(run: Path, since: float) -> None:
    """Check that the last segments did not all end without progress.

    Args:
        run: The run directory.
        since: Time from which segments count, in seconds since 1970.

    Raises:
        RunError: If the last `MOST_FRUITLESS` segments brought no progress: another would not either.
    """
    bad = fruitless_segments(read_ledger(run), since)
    if len(bad) < MOST_FRUITLESS:
        return

    reasons = ", ".join(line.reason for line in bad)
    raise RunError(
        f"the last {len(bad)} segments brought no progress ({reasons}; the last one: {bad[-1].detail}); "
        "fix the cause and run `flipscale submit` again",
        kind="no_progress",
    )


def exhausted(run: RunDirectory, place: Placement) -> bool:
    """Return whether more than `MOST_FRUITLESS` starts in a row, up to this one, opened no segment.

    No ledger counts such starts: their processes did not meet, or the storage of the run did not answer.

    Args:
        run: The run directory.
        place: The placement of a process of this start.
    """
    try:
        starts = _starts_without_a_segment(run, place)
    except (OSError, UserError):
        # The storage still does not answer. The batch script, which cannot read either, counts like this.
        starts = place.restarts + 1

    return starts > MOST_FRUITLESS


def _starts_without_a_segment(run: RunDirectory, place: Placement) -> int:
    """Count the starts of a job, up to this one, since the last one that opened a segment.

    Each job before this one in a chain of jobs counts as one start.

    Raises:
        UserError: If the ledger or a submission is damaged.
        OSError: If one of these cannot be read.
    """
    lines = read_ledger(run.path)
    if (under_way := read_open_segment(run.path)) is not None:
        lines.append(under_way)

    last = max((line.restarts for line in lines if line.job_id == place.job_id), default=None)
    if last is not None:
        return place.restarts - last

    opened = {line.job_id for line in lines}
    before = {submission.job_id: submission.dependency for submission in read_submissions(run)}
    starts = place.restarts + 1
    job_id = before.get(place.job_id)
    while job_id is not None and job_id not in opened:
        starts += 1
        job_id = before.pop(job_id, None)
    return starts
