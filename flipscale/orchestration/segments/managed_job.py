"""A Slurm job that starts itself again: it requeues itself, or submits its successor."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass
from typing import NoReturn

import psutil
from submitit.helpers import clean_env, environment_variables

from flipscale import slurm
from flipscale.config import Site
from flipscale.distributed.placement import Placement
from flipscale.errors import Reason, UserError
from flipscale.orchestration.cluster.blamed_nodes import avoidance
from flipscale.orchestration.cluster.submit import submit_run
from flipscale.orchestration.segments.fruitless_starts import check_progress, exhausted
from flipscale.orchestration.segments.job_record import query_record, query_state, reason_of_signal
from flipscale.orchestration.segments.job_times import SlurmTimes, slurm_times
from flipscale.orchestration.segments.peers import give_up
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.submissions import Submission, read_submissions
from flipscale.slurm import NoAnswerError, SlurmError

_REPEATS = 3  # of a question that Slurm did not answer
_PAUSE = 5.0  # seconds between two of these
_RECORD_SECONDS = 60.0  # in which a submission writes its record
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ManagedJob:
    """A Slurm job of `flipscale submit`, seen from one of its processes. The job has to start itself again.

    Attributes:
        run: The run directory.
        place: The placement of this process.
        submission: The record of the job's submission.
        started: When this start began, in seconds since 1970.
    """

    run: RunDirectory
    place: Placement
    submission: Submission
    started: float

    @property
    def site(self) -> Site:
        """The site at the time of the submission."""
        return self.submission.site

    def check_progress(self) -> None:
        """Check that the last segments since a person submitted the run did not all end without progress.

        Raises:
            RunError: If they did: another would not bring any either.
        """
        by_hand = [s.time for s in read_submissions(self.run) if s.dependency is None]
        check_progress(self.run.path, by_hand[-1] if by_hand else 0.0)

    def times(self) -> SlurmTimes:
        """Return what Slurm says about this start and the starts before it."""
        return slurm_times(self.run, self.place, accounting=self.submission.accounting)

    def deadline(self) -> float | None:
        """Return the `time.monotonic()` value at which to stop for the job's time limit.

        Returns:
            The value, or None if the job has no time limit.

        Raises:
            SlurmError: If Slurm does not answer.
            UserError: If Slurm's commands are not installed.
        """
        left = query_record(self.place, self.site).seconds_left
        return None if left is None else time.monotonic() + left - self.site.stop_before

    def reason_of_stop(self, requested: str) -> Reason:
        """Return the ledger's word for a stop.

        Args:
            requested: The agreed request, one of `stop_requests.REASONS`.
        """
        if requested in ("stop_file", "sigint"):
            return "stopped"
        if requested == "deadline":
            return "timeout"

        return reason_of_signal(self.run, self.place, self.site, self.started)

    def prepare_next_start(self) -> float | None:
        """Submit the successor if the site chains jobs; a Slurm that does not answer is logged.

        Returns:
            The `deadline`, or None if it is unknown or the job has none.
        """
        limit = None
        try:
            limit = self.deadline()
        except (SlurmError, UserError) as error:
            _log.warning("the end of the job's time limit is not known: %s", error)

        try:
            self.prepare_successor()
        except (SlurmError, UserError) as error:
            _log.warning("no job could be submitted to follow this one: %s", error)
        return limit

    def is_over(self, owner: str) -> bool:
        """Return whether the start that still owns the run is over.

        Args:
            owner: The attempt that owns the run: an older start of this job, or one of a job that may have
                ended.
        """
        job_id, _, restarts = owner.rpartition(".")
        if not restarts.isdigit():
            return False
        if job_id == self.place.job_id:
            return int(restarts) < self.place.restarts

        try:
            record = slurm.query_job(job_id)
        except (SlurmError, UserError):
            return False

        return record is None or record.get("JobState") not in slurm.LIVE_STATES

    def start_again(self) -> str:
        """Have the job started again. A controller that is busy is asked again.

        Slurm then ends this start at once: everything must be on disk, and every process ready to leave.

        Returns:
            What was done, as a sentence.

        Raises:
            SlurmError: If Slurm refuses, or does not answer repeatedly.
            UserError: If Slurm's commands are not installed.
        """
        for _ in range(_REPEATS):
            try:
                return self._arrange_start()
            except SlurmError as error:
                _log.warning("Slurm does not answer and is asked again: %s", error)
                time.sleep(_PAUSE)

        return self._arrange_start()

    def try_start_again(self) -> bool:
        """Have the job started again, and log what was done; return whether that succeeded.

        Starts that opened a segment are bounded by the next start, which counts segments without progress.
        """
        if exhausted(self.run, self.place):
            _log.error("four starts in a row ended before they could train; fix the cause and submit again")
            return False

        try:
            _log.info("%s", self.start_again())
        except (SlurmError, UserError) as error:
            _log.error("the job could not be started again: %s; run `flipscale submit` again", error)
            return False

        return True

    def give_up(self) -> NoReturn:
        """Have the job started again from a process that may have lost its peers, and exit."""
        give_up(self.run.path, self.place, self.try_start_again)

    def _arrange_start(self) -> str:
        if (successor := self._successor()) is not None:
            return f"job {successor.job_id} is waiting for this one to end"

        # Look before the request: a requeue would bring a cancelled job back to life.
        record = query_state(self.place, self.site)
        if record.requeued:
            return "Slurm has requeued the job already"
        if record.cancelled and not record.near_its_limit:
            return "the job was cancelled; it does not start again"

        if shutil.which("scontrol") is None:
            return self._follow(f"{self.place.node} has no scontrol")

        # Ask before the request: Slurm ends this process soon after it.
        avoid = avoidance(self.run, self.site, self.place.job_id)
        try:
            slurm.run_slurm("scontrol", "requeue", self.place.job_id)
        except NoAnswerError:
            # Unknown, not refused: the job may be requeued nevertheless. The next look shows it, unless Slurm
            # ends this process first.
            raise
        except SlurmError as refusal:
            if "pending execution" in str(refusal):
                return "Slurm has requeued the job already"
            return self._follow(str(refusal))

        avoid()
        return f"job {self.place.job_id} is requeued"

    def _follow(self, refusal: str) -> str:
        _log.warning("Slurm does not requeue job %s: %s", self.place.job_id, refusal)
        return f"job {self._submit_successor().job_id} was submitted to follow this one"

    def prepare_successor(self) -> None:
        """Submit the next job now if the site chains jobs: this one may be killed without a warning.

        Raises:
            SlurmError: If Slurm does not answer.
            UserError: If Slurm refuses the job.
        """
        if self.site.restart == "chain" and self._successor() is None:
            job = self._submit_successor().job_id
            _log.info("job %s will follow this one (the site's restart is chain)", job)

    def cancel_successor(self) -> None:
        """Cancel the successor that waits for this job: no further start is wanted."""
        if (successor := self._successor()) is None:
            return

        try:
            slurm.cancel_jobs([successor.job_id], waiting=True)
        except SlurmError as error:
            _log.warning(
                "job %s, which follows this one, could not be cancelled: %s", successor.job_id, error
            )

    def _successor(self) -> Submission | None:
        last = read_submissions(self.run)[-1]
        return last if last.dependency == self.place.job_id else None

    def _submit_successor(self) -> Submission:
        # sbatch would take over the settings of the job from which it is called, so it gets a clean
        # environment, except for the file that names Slurm's controller.
        client = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
        with clean_env(), environment_variables(**client):
            return submit_run(
                self.run, recorded_job(self.run), self.site, cluster="slurm", dependency=self.place.job_id
            )


def managed_job(run: RunDirectory, place: Placement) -> ManagedJob | None:
    """Return this process's Slurm job if `flipscale submit` submitted it for this run, else None.

    Args:
        run: The run directory.
        place: The placement of this process.
    """
    started = psutil.Process().create_time()
    end = time.monotonic() + _RECORD_SECONDS
    while True:
        for submission in reversed(read_submissions(run)):
            if submission.cluster == "slurm" and submission.job_id == place.job_id:
                return ManagedJob(run, place, submission, started)

        # A job can start before its record is written.
        if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or time.monotonic() > end:
            return None

        time.sleep(0.5)
