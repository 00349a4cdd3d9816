"""What a start adds to the ledger about those before it, which could not write it themselves."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from flipscale.data.quarantine import count_quarantine
from flipscale.errors import UserError
from flipscale.files import set_aside
from flipscale.progress import Progress
from flipscale.runs.damaged_segment import rebuild_segment
from flipscale.runs.directory import RunDirectory
from flipscale.runs.killed_segment import close_killed
from flipscale.runs.ledger import LedgerLine, read_ledger, read_open_segment, write_ledger
from flipscale.runs.past_starts import PastStart, with_past_starts
from flipscale.runs.roll_back import roll_back

_log = logging.getLogger(__name__)


def account_for_the_past(
    run: RunDirectory, resumed: Progress, attempt: str, past: Sequence[PastStart]
) -> None:
    """Add the lines that no process could write, and the time that no process could see.

    These are the lines of a killed segment, of starts that ended before their segment began, and of a
    roll-back. The time is that in which a job kept its nodes after the last word of its processes.
    """
    before = read_ledger(run.path, as_written=True)
    lines = list(before)

    killed = _open_segment(run, lines, resumed, attempt)
    if killed is not None and (not lines or killed.segment > lines[-1].segment):
        # A segment that found the disk full has left its own line; nobody else knows how a killed one ended.
        line = killed if killed.ended else close_killed(run.path, killed, resumed)
        lines.append(replace(line, quarantined=recorded_quarantine(run)))

    lines = with_past_starts(lines, past)
    if lines and lines[-1].samples_to != resumed.samples_seen:
        lines.append(roll_back(lines, resumed))

    # The lines first: a crash in between leaves the open segment as well, which the next start removes.
    if lines != before:
        write_ledger(run.path, lines)
    run.open_segment.unlink(missing_ok=True)


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


def recorded_quarantine(run: RunDirectory) -> int | None:
    """Return the number of records in the quarantine list; None if the list is damaged."""
    try:
        return count_quarantine(run.quarantine) or 0
    except (UserError, OSError):
        return None
