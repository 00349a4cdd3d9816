"""One start of a run, in one of its processes: its name, how it ends, and whether it starts again."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flipscale import slurm
from flipscale.config import Job
from flipscale.distributed.world import World
from flipscale.errors import Reason, RunError, StoppedEarly, UserError
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.orchestration.segments.watchdog import Watchdog
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import TRANSIENT, Failure, failure_of, verdict
from flipscale.runs.heartbeat import read_heartbeats
from flipscale.runs.ledger import fruitless_segments, read_ledger
from flipscale.runs.ledger_writer import LedgerWriter
from flipscale.runs.lock import RunLock, lock_run
from flipscale.slurm import SlurmError

if TYPE_CHECKING:
    from flipscale.orchestration.segments.managed_job import ManagedJob

MOST_FRUITLESS = 3  # segments in a row that end badly without any progress
_TIME_TO_TELL = 3.0  # seconds in which all processes of a start have said how they failed
_TIME_TO_LEAVE = 60.0  # seconds from the end of the work to the end of the process
_log = logging.getLogger(__name__)


class Segment:
    """Keeps the ledger and the signs of life, says why a stop came, and has the job started again.

    Args:
        managed: the Slurm job that must start itself again; None where a person or a launcher does it.
    """

    def __init__(
        self,
        job: Job,
        run: RunDirectory,
        world: World,
        stop: StopRequests,
        managed: ManagedJob | None = None,
    ) -> None:
        self.run = run
        self.world = world
        self.stop = stop
        self.failure: Failure | None = None
        """How it ended, once it has."""
        self._managed = managed
        self._checks_nodes = job.cluster.check_node
        unnamed = f"{world.place.node or 'here'}.{os.getpid()}"
        self.attempt = world.place.attempt or world.lead(lambda: unnamed)
        self.watchdog = Watchdog(run.path, world, self.attempt, job.hang, self._hangs)
        self._resumed = Progress()
        self._ledger: LedgerWriter | None = None
        self._lock: RunLock | None = None

    def begin(self, resumed: Progress) -> None:
        """Open the ledger at the progress that training goes on from; all processes call it.

        Raises RunError where the last segments brought nothing, so that another would not either, and where
        a node is broken (cluster.check_node).
        """
        self._resumed = resumed
        self.watchdog.start(resumed.samples_seen)
        self.world.lead(lambda: self._open_ledger(resumed))
        place = self.world.place
        _log.info(
            "start %s: %d processes on %s, from %d samples",
            *(self.attempt, self.world.size, ", ".join(place.nodes or (place.node,)), resumed.samples_seen),
        )
        if self._managed is not None and self.world.leads:
            self._prepare(self._managed)
        if self._checks_nodes:
            self._check_nodes()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The leading process holds the run. Raises UserError where another one trains in it."""
        with lock_run(self.run, self.attempt, self._is_over) as self._lock:
            try:
                yield
            except BaseException as error:
                self.end(self._resumed, self._resumed, error)  # where training did not come to do it
                raise

    def check_lock(self) -> None:
        """Raise RunError where a newer start has taken over: nothing may be written any more."""
        if self._lock is not None:
            self._lock.check()

    def training(self) -> None:
        """The first step is about to begin."""
        if self._ledger is not None:
            self._ledger.training()

    def reason_of_stop(self, requested: str) -> Reason:
        """The ledger's word for an agreed stop; all processes call it."""
        managed = self._managed
        if managed is None:
            # submitit's controller warns of its time limit by this signal.
            warned = self.world.place.under_local_executor and requested == "sigusr2"
            return "timeout" if requested == "deadline" or warned else "stopped"
        return self.world.lead(lambda: managed.reason_of_stop(requested))

    def end(self, committed: Progress, reached: Progress, error: BaseException | None = None) -> None:
        """Find out why it ends (`error`, or the spent budget), and write it down."""
        self.failed(error) if error is not None else self._done()
        assert self.failure is not None
        if self._ledger is not None and self.failure.kind != "superseded":
            since = self.stop.since
            waited = time.monotonic() - since if since is not None else 0.0
            self._ledger.close(committed, reached, self.failure, stop_seconds=waited)
        self._ledger = None

    def failed(self, error: BaseException) -> Failure:
        """The cause of an end by `error`; known to the other processes from now on."""
        if self.failure is not None:
            return self.failure
        own = failure_of(error)
        self.watchdog.close("stopped" if _agreed(error) else "failed", own)
        if own.kind == "lost_process":
            time.sleep(_TIME_TO_TELL)
            own = verdict(own, read_heartbeats(self.run.path, self.attempt))
        self.failure = own
        return own

    def leave(self, error: BaseException | None) -> None:
        """After all is on disk: see to the next start. Does not return where the job starts again.

        Its processes must not leave before that is arranged: Slurm would count the job as over.
        """
        _guard_exit()
        managed = self._managed
        again = managed is not None and error is not None and self.failed(error).kind in TRANSIENT
        if managed is not None and not again and self.world.leads:
            managed.cancel_successor()
        if error is None:
            return
        if managed is not None and again and _agreed(error):
            _log.info("%s", error)
            arranged = self.world.lead(lambda: self._start_again(managed))
            _exit_now(0 if arranged else 75)
        if self.world.place.under_local_executor and self.failed(error).kind == "timeout":
            from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

            _log.info("%s", error)
            _exit_now(LOCAL_REQUEUE_RETURN_CODE)  # the controller starts all processes again
        if failure_of(error).kind == "lost_process":
            # Its own traceback says nothing: the cause lies with another process, and that one tells.
            _log.error("error: %s", self.failed(error).message)
        if managed is not None and again:
            self._give_up(managed)
        if failure_of(error).kind == "lost_process":
            _exit_now(1)

    def _open_ledger(self, resumed: Progress) -> None:
        self._ledger = LedgerWriter(self.run.path, resumed, self.world, self.attempt)
        if self._managed is None:
            return
        lines = read_ledger(self.run.path)
        bad = fruitless_segments(lines, self._managed.submitted_by_a_person)
        if len(bad) >= MOST_FRUITLESS:
            reasons = ", ".join(line.reason for line in bad)
            raise RunError(
                f"the last {len(bad)} segments brought no progress ({reasons}; "
                f"the last one: {bad[-1].detail}); mend the cause and give `flipscale submit` again",
                kind="no_progress",
            )

    def _check_nodes(self) -> None:
        from flipscale.orchestration.checks.node import measure_nodes

        bad = [finding for finding in measure_nodes(self.world, self.run.path) if finding.level == "error"]
        if bad:
            told = "; ".join(f"{finding.node}: {finding.name} {finding.text}" for finding in bad)
            nodes = tuple(dict.fromkeys(finding.node for finding in bad))
            raise RunError(f"a node failed its check ({told}); {bad[0].fix}", "bad_node", nodes)

    def _prepare(self, managed: ManagedJob) -> None:
        """Learn when the time limit strikes, and have a successor wait where the site wants one."""
        try:
            limit = managed.deadline()
            managed.prepare_successor()
        except (SlurmError, UserError) as error:
            _log.warning("Slurm does not answer: %s", error)
            return
        if limit is not None:
            self.stop.deadline = min(limit, self.stop.deadline or limit)

    def _is_over(self, holder: str) -> bool:
        """Whether the start that still holds the run is an older one of this job, or of a job that ended."""
        job_id, _, restarts = holder.rpartition(".")
        place = self.world.place
        if self._managed is None or not restarts.isdigit():
            return False
        if job_id == place.job_id:
            return int(restarts) < place.restarts
        try:
            record = slurm.query_job(job_id)
        except SlurmError:
            return False
        return record is None or record.get("JobState") not in slurm.LIVE_STATES

    def _done(self) -> None:
        self.failure = Failure("done", "")
        self.watchdog.close("done")

    def _hangs(self, failure: Failure) -> None:
        """Called by the watchdog, whose process ends when this returns."""
        if self._managed is not None and failure.kind in TRANSIENT:
            time.sleep(_TIME_TO_TELL)  # all processes notice a hang, and have their stacks to write
            self._give_up(self._managed)

    def _give_up(self, managed: ManagedJob) -> None:
        """Have the job started again from a process whose peers cannot be asked any more.

        One process a node tries, the leading one first, since that may be the one that is gone; Slurm takes
        the first request. The others stay until then: the job would be over with the first that leaves.
        """
        if self.world.local_rank == 0:
            time.sleep(0.0 if self.world.leads else _TIME_TO_TELL)
            self._start_again(managed)
        else:
            time.sleep(_TIME_TO_LEAVE)
        _exit_now(1)

    def _start_again(self, managed: ManagedJob) -> bool:
        try:
            _log.info("%s", managed.start_again())
        except (SlurmError, UserError) as error:
            _log.error("the job could not be started again: %s; give `flipscale submit` again", error)
            return False
        return True


def _agreed(error: BaseException) -> bool:
    """Whether all processes end together, at the same step."""
    return isinstance(error, StoppedEarly) and error.agreed


def handle_failed_rendezvous(managed: ManagedJob | None, error: Exception) -> None:
    """The processes of a start did not find each other: a node is gone, or a port taken. Try again, but not
    for ever. Returns where nothing is to be done about it."""
    if managed is None or managed.starts_without_a_segment() > MOST_FRUITLESS:
        return
    _log.error("the processes did not find each other: %s", error)
    # The leading process asks first, then one of each node: the job would be over with the first that leaves,
    # and Slurm ends all of them with the first request.
    place = managed.place
    time.sleep(_TIME_TO_TELL * (0 if place.rank == 0 else 1 if place.local_rank == 0 else 2))
    try:
        _log.info("%s", managed.start_again())
    except (SlurmError, UserError) as refused:
        _log.error("the job could not be started again: %s", refused)
    _exit_now(1)


def _guard_exit() -> None:
    """End this process by force if it does not by itself: a node whose processes stay is taken away."""

    def end() -> None:
        _log.error("this process did not end within %.0f s; ended by force", _TIME_TO_LEAVE)
        _exit_now(1)

    timer = threading.Timer(_TIME_TO_LEAVE, end)
    timer.daemon = True
    timer.start()


def _exit_now(code: int) -> None:
    """Leave without the interpreter's farewell, which can wait for threads that wait for dead peers."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
