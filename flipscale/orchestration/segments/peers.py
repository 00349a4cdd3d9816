"""The end of a process that may have lost peers: it waits for their reports, and one requeues the job."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from flipscale.distributed.placement import Placement
from flipscale.orchestration.segments.process_exit import exit_now
from flipscale.processes import own_mark
from flipscale.runs.heartbeat import Heartbeat, read_ends, read_heartbeat, read_heartbeats

SECONDS_TO_REPORT = 3.0
"""Seconds in which all processes of a start have said how they failed."""

_LOOK_SECONDS = 0.1  # between two looks at the reports


def await_reports(run: Path, attempt: str, place: Placement) -> None:
    """Wait until every process of the start has reported its end or is gone, at most `SECONDS_TO_REPORT`.

    Whether a process of another machine is gone cannot be seen from here.

    Args:
        run: The run directory.
        attempt: The name of the start.
        place: The placement of this process.
    """
    until = time.monotonic() + SECONDS_TO_REPORT
    missing = set(range(place.size)) - {place.rank}
    beats: dict[int, Heartbeat] = {}  # read once: they say which processes the missing ones are
    while time.monotonic() < until:
        missing -= read_ends(run, attempt).keys()
        for rank in missing - beats.keys():
            beat = read_heartbeat(run, attempt, rank)
            if beat is not None:
                beats[rank] = beat

        if all(rank in beats and _is_gone(beats[rank]) for rank in missing):
            return
        time.sleep(_LOOK_SECONDS)


def give_up(run: Path, place: Placement, start_again: Callable[[], bool]) -> NoReturn:
    """Have the job started again from a process that may have lost its peers, and exit.

    Call `await_reports` first. The process of the lowest rank that reported its end asks Slurm. One process
    of each other node does so after a while, in case that process ends before it could ask; Slurm takes the
    first request. If nobody could ask, the batch script does.

    Args:
        run: The run directory.
        place: The placement of this process, in a job.
        start_again: The request to Slurm.
    """
    # The others stay meanwhile, since srun ends all processes soon after the first one that leaves. They do
    # not stay longer: the nodes are taken until the last one has left.
    beats = read_heartbeats(run, place.attempt)
    if any(beat.state == "failed" and beat.rank < place.rank for beat in beats):
        time.sleep(SECONDS_TO_REPORT)
        if place.local_rank > 0:
            exit_now(1)

    start_again()
    exit_now(1)


def _is_gone(beat: Heartbeat) -> bool:
    """Return whether the process of a heartbeat is one of this machine that is gone."""
    here = own_mark().boot
    return bool(here) and beat.boot == here and not beat.mark.lives
