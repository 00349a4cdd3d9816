"""The first acts of a process: it finds its job, and meets the other processes of the start."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World, join_world
from flipscale.errors import StoppedEarly
from flipscale.orchestration.segments.fruitless_starts import exhausted
from flipscale.orchestration.segments.peers import SECONDS_TO_REPORT
from flipscale.orchestration.segments.process_exit import exit_now
from flipscale.orchestration.segments.rendezvous import bounded_rendezvous
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import TRANSIENT, failure_of
from flipscale.runs.last_word import write_last_word

if TYPE_CHECKING:
    from flipscale.orchestration.segments.managed_job import ManagedJob

_log = logging.getLogger(__name__)


def find_managed_job(run: RunDirectory, place: Placement) -> ManagedJob | None:
    """Return the Slurm job that this process belongs to, if `flipscale submit` submitted it, else None."""
    if not place.under_slurm:
        return None

    from flipscale.orchestration.segments.managed_job import managed_job

    return managed_job(run, place)


def meet(place: Placement, stop: StopRequests, managed: ManagedJob | None) -> World:
    """Join the other processes of the start, or have the job started again if they do not meet.

    Args:
        place: The placement of this process.
        stop: This process's requests to stop, which listens already.
        managed: The Slurm job that starts itself again, if there is one.

    Raises:
        UserError: If a process does not see its GPU, or has that of another one.
        RuntimeError: If the processes do not meet, and the job is not started again.
        OSError: As `RuntimeError`.
    """
    try:
        with bounded_rendezvous(stop, lambda: _leave_unmet(managed)):
            return join_world(place)
    except (RuntimeError, OSError) as error:  # torch's DistNetworkError and its kind are RuntimeErrors
        _handle_failure(managed, error)
        raise


@contextmanager
def failures_before_the_segment(run: RunDirectory, place: Placement) -> Generator[None]:
    """Leave a last word if the start fails in the context, for a reason that another start would not change.

    Args:
        run: The run directory.
        place: The placement of this process.
    """
    try:
        yield
    except BaseException as error:
        failure = failure_of(error)
        if place.under_slurm and failure.kind not in TRANSIENT:
            write_last_word(run.path, place.attempt, failure)
        raise


def _leave_unmet(managed: ManagedJob | None) -> NoReturn:
    """Leave a start whose processes have not met, because a stop was requested; the job is requeued.

    Args:
        managed: The Slurm job that starts itself again, if there is one.
    """
    error = StoppedEarly("a stop was requested before the processes of this start had found each other")
    _handle_failure(managed, error)

    _log.error("%s", error)
    exit_now(1 if managed is not None else 75)


def _handle_failure(managed: ManagedJob | None, error: Exception) -> None:
    """Handle a failed rendezvous (lost node, port in use): have the job started again.

    The function returns only if the job is not to start again.

    Args:
        managed: The Slurm job that starts itself again, if there is one.
        error: Why the processes of the start did not connect.
    """
    if managed is None or exhausted(managed.run, managed.place):
        return

    _log.error("the processes did not find each other: %s", error)

    # The leading process asks Slurm first, then one process of each node, then the others: the job would be
    # over with the first process that leaves, and Slurm ends all processes with the first request.
    place = managed.place
    if place.rank == 0:
        turn = 0
    elif place.local_rank == 0:
        turn = 1
    else:
        turn = 2
    time.sleep(turn * SECONDS_TO_REPORT)

    managed.try_start_again()
    exit_now(1)
