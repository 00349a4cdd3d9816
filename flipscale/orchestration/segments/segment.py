"""One start of a run, in one of its processes: its name, its ledger line, and how it ends."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flipscale.config import Hang
from flipscale.distributed.world import World
from flipscale.errors import Reason, StoppedEarly
from flipscale.orchestration.segments.start_checks import check_devices, check_nodes, connect_devices
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.orchestration.segments.watchdog import Watchdog
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import TRANSIENT, Failure, failure_of
from flipscale.runs.ledger_writer import LedgerWriter
from flipscale.runs.lock import RunLock, lock_run

if TYPE_CHECKING:
    from flipscale.orchestration.segments.managed_job import ManagedJob

_log = logging.getLogger(__name__)


class Segment:
    """One start of a run: it keeps the ledger and the signs of life, and names the reason of a stop.

    All processes of the start make one. `segment_exit.leave_segment` then arranges the next start.

    Attributes:
        run: The run directory.
        world: The processes of this start.
        stop: This process's requests to stop.
        managed: The Slurm job that starts itself again; None if a person or a launcher does.
        attempt: The name that all processes of this start share.
        watchdog: The thread that watches this process's steps.
        failure: How the segment ended; None until it has.
    """

    def __init__(
        self,
        run: RunDirectory,
        world: World,
        stop: StopRequests,
        managed: ManagedJob | None = None,
        *,
        hang: Hang,
        checks_nodes: bool = False,
    ) -> None:
        """Name the start. All processes call this method together.

        Args:
            run: The run directory.
            world: The processes of this start.
            stop: This process's requests to stop.
            managed: The Slurm job that has to start itself again; None if a person or a launcher does.
            hang: When a step that does not end is given up.
            checks_nodes: Whether to measure every node before the first step (`cluster.check_node`).
        """
        self.run = run
        self.world = world
        self.stop = stop
        self.managed = managed
        self.failure: Failure | None = None

        default_name = f"{world.place.node or 'here'}.{os.getpid()}"
        self.attempt = world.place.attempt or world.lead(lambda: default_name)
        self.watchdog = Watchdog(run.path, world, self.attempt, hang, self._on_hang)

        self._checks_nodes = checks_nodes
        self._resumed = Progress()
        self._ledger: LedgerWriter | None = None
        self._lock: RunLock | None = None

    def begin(self, resumed: Progress) -> None:
        """Open the ledger and check the start. All processes call this method together.

        Args:
            resumed: The progress from which training resumes.

        Raises:
            RunError: If the last segments brought no progress, so that another would not either, or if a
                node fails its check or has no GPU for one of its processes.
        """
        self._resumed = resumed

        # Watch from here on: opening the ledger may hang in its file system.
        self.watchdog.start(resumed.samples_seen)
        self.world.lead(lambda: self._open_ledger(resumed))

        place = self.world.place
        _log.info(
            "start %s: %d processes on %s, from %d samples",
            self.attempt,
            self.world.size,
            ", ".join(place.nodes or (place.node,)),
            resumed.samples_seen,
        )

        check_devices(self.world)
        connect_devices(self.world)

        # Learn the time limit before the measurements, which take a while and may fail.
        if self.managed is not None and self.world.leads:
            self._expect_next_start(self.managed)
        if self._checks_nodes:
            check_nodes(self.run.path, self.world)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Lock the run for the leading process, which calls this method by itself.

        Raises:
            UserError: If another process trains in the run.
        """
        with lock_run(self.run, self.attempt, self._is_over) as self._lock:
            try:
                yield
            except BaseException as error:
                # Write the end while the lock is held, in case training failed before it could do so.
                self.end(self._resumed, self._resumed, error)
                raise

    def check_lock(self) -> None:
        """Check that this start still owns the run.

        Raises:
            RunError: If a newer start has taken over: this one must not write any more.
        """
        if self._lock is not None:
            self._lock.check()

    def training(self) -> None:
        """Note in the ledger that the first step is about to begin."""
        if self._ledger is not None:
            self._ledger.training()

    def committed(self, samples: int) -> None:
        """Note in the ledger that a checkpoint is on disk; the background thread that saves may call this.

        Args:
            samples: Samples seen at the checkpoint.
        """
        # A newer start that has taken over keeps the record of its own segment.
        if self._ledger is not None and (self._lock is None or self._lock.held):
            self._ledger.committed(samples)

    def reason_of_stop(self, requested: str) -> Reason:
        """Return the ledger's word for an agreed stop. All processes call this method together.

        Args:
            requested: The agreed request, one of `stop_requests.REASONS`.
        """
        managed = self.managed
        if managed is not None:
            return self.world.lead(lambda: managed.reason_of_stop(requested))

        # submitit's controller warns of its time limit by this signal.
        warned = self.world.place.under_local_executor and requested == "sigusr2"
        return "timeout" if requested == "deadline" or warned else "stopped"

    def end(self, committed: Progress, reached: Progress, error: BaseException | None = None) -> None:
        """Find out why the segment ends, and write that into the ledger once.

        Args:
            committed: The progress of the newest committed checkpoint.
            reached: The progress of training.
            error: What ends the segment; None if the budget is spent.
        """
        # Report first: the peers read this process's last sign while it waits for theirs.
        failure = self._done() if error is None else self.failed(error)

        # The ledger comes last, with the cause that all signs give. After a takeover, it is the newer one's.
        # A line that cannot be written is not tried again: it may be there, and the next start looks.
        ledger = self._ledger
        self._ledger = None
        if ledger is not None and failure.kind != "superseded":
            since = self.stop.since
            waited = time.monotonic() - since if since is not None else 0.0
            ledger.close(
                committed,
                reached,
                failure,
                stop_seconds=waited,
                seconds_since_step=self.watchdog.seconds_since_step,
            )

        # Only now has the STOP file done its work: a start that is killed before must not start again.
        if self.world.leads and failure.kind in ("stopped", "cancelled"):
            self.run.forget_stop_request()

    def failed(self, error: BaseException) -> Failure:
        """Return the cause of an end by `error`, and publish this process's own part of it.

        The first call decides; later calls return the same cause.
        """
        if self.failure is not None:
            return self.failure

        # Leave the last sign before waiting for those of the peers: they wait for this one as well.
        own = failure_of(error, self.world.place.node)
        self.watchdog.close("stopped" if agreed_by_all(error) else "failed", own)

        self.failure = self.watchdog.cause_of(own)
        return self.failure

    def _done(self) -> Failure:
        self.failure = Failure("done", "")
        self.watchdog.close("done")
        return self.failure

    def _open_ledger(self, resumed: Progress) -> None:
        # Open before the check: opening closes the lines of killed segments, which the check counts.
        times = self.managed.times() if self.managed is not None else None
        self._ledger = LedgerWriter(self.run.path, resumed, self.world, self.attempt, times)
        if self.managed is not None:
            self.managed.check_progress()

    def _expect_next_start(self, managed: ManagedJob) -> None:
        """Stop before the time limit, and let a successor wait if the site chains jobs."""
        limit = managed.prepare_next_start()
        if limit is not None:
            self.stop.deadline = min(limit, self.stop.deadline or limit)

    def _is_over(self, owner: str) -> bool:
        return self.managed is not None and self.managed.is_over(owner)

    def _on_hang(self, failure: Failure) -> None:
        """Have the job started again. The watchdog calls this method, and ends the process after it."""
        if self.managed is not None and failure.kind in TRANSIENT:
            self.managed.give_up()


def agreed_by_all(error: BaseException) -> bool:
    """Return whether all processes end together, after the same step."""
    return isinstance(error, StoppedEarly) and error.agreed
