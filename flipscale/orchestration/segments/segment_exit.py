"""The last acts of a process: it arranges the next start of the job, then it exits."""

from __future__ import annotations

import logging

from flipscale.errors import RunError
from flipscale.orchestration.segments.process_exit import exit_now, guard_exit
from flipscale.orchestration.segments.segment import Segment, agreed_by_all
from flipscale.runs.failures import TRANSIENT, Failure, failure_of
from flipscale.runs.last_word import write_last_word

_log = logging.getLogger(__name__)


def leave_segment(segment: Segment, error: BaseException | None) -> None:
    """Requeue the job if it should run again; called last, when everything is on disk.

    The function does not return if the job starts again. All processes stay until that is arranged: Slurm
    would count the job as ended with the first process that leaves.

    Args:
        segment: The segment that ended.
        error: What ended it; None if the budget is spent.

    Raises:
        RunError: If a loader worker was killed: torch's own error is a traceback.
    """
    # Guard first: every wait below may be for a peer that is gone.
    guard_exit()

    managed = segment.managed
    again = managed is not None and error is not None and segment.failed(error).kind in TRANSIENT

    # Do this before anything else: the batch script starts the job again without a last word, and the
    # successor starts as soon as this job has ended.
    if managed is not None and not again and (error is not None or segment.world.leads):
        write_last_word(segment.run.path, segment.attempt, segment.failure or Failure("done", ""))
    if managed is not None and not again and segment.world.leads:
        managed.cancel_successor()
    if error is None:
        return

    # All processes are alive and stop together: the leading one asks Slurm, the others wait for its answer.
    if managed is not None and again and agreed_by_all(error):
        _log.info("%s", error)
        arranged = segment.world.lead(managed.try_start_again)
        exit_now(0 if arranged else 75)

    # The local executor's controller starts all processes again after this exit code.
    if segment.world.place.under_local_executor and segment.failed(error).kind == "timeout":
        from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

        _log.info("%s", error)
        exit_now(LOCAL_REQUEUE_RETURN_CODE)

    # Report before giving up, which does not return. The traceback of a process that lost a peer does not
    # show the cause; the peer's own message does.
    lost_peer = failure_of(error).kind == "lost_process"
    if lost_peer or (managed is not None and again):
        _log.error("error: %s", segment.failed(error).message)
    if managed is not None and again:
        managed.give_up()

    # Without interpreter shutdown, which could wait for the lost peer.
    if lost_peer:
        exit_now(1)
    if failure_of(error).kind == "killed":
        raise RunError(segment.failed(error).message, "killed") from None
