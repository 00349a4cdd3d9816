"""Start the same job again from inside: requeue it, or submit its successor where the cluster will not."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from datetime import datetime

import psutil
from submitit.helpers import clean_env, environment_variables

from flipscale import slurm
from flipscale.config import Site
from flipscale.distributed.placement import Placement
from flipscale.errors import Reason, UserError
from flipscale.orchestration.cluster.submit import submit_run
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.failures import slurm_verdict
from flipscale.runs.ledger import read_ledger
from flipscale.runs.submissions import Submission, read_submissions
from flipscale.slurm import NoAnswerError, SlurmError

# A stop this close to the time limit is on its account: Slurm warns up to a minute early, on a coarse clock.
_NEAR_THE_END = 120.0
_REPEATS, _PAUSE = 3, 5.0  # of a question that Slurm did not answer; seconds between
_RECORD_SECONDS = 60.0  # in which a submission writes its record
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ManagedJob:
    """A Slurm job of `flipscale submit`, seen from one of its processes: it has to start itself again."""

    run: RunDirectory
    place: Placement
    submission: Submission
    started: float  # seconds since 1970; of this start

    @property
    def site(self) -> Site:
        return self.submission.site

    @property
    def submitted_by_a_person(self) -> float:
        """When a person last submitted the run, in seconds since 1970."""
        by_hand = [s.time for s in read_submissions(self.run) if s.dependency is None]
        return by_hand[-1] if by_hand else 0.0

    def starts_without_a_segment(self) -> int:
        """Starts of this job, up to this one, since the last that came as far as the ledger."""
        lines = [line for line in read_ledger(self.run.path) if line.job_id == self.place.job_id]
        return self.place.restarts - (lines[-1].restarts if lines else -1)

    def deadline(self) -> float | None:
        """time.monotonic() value at which to stop for the job's time limit; None where it has none."""
        end = _end_of(slurm.query_job(self.place.job_id) or {})
        return None if end is None else time.monotonic() + end - time.time() - self.site.stop_before

    def reason_of_stop(self, requested: str) -> Reason:
        """The ledger's word for a stop that was requested by `requested`, one of stop.REASONS."""
        if requested in ("stop_file", "sigint"):
            return "stopped"
        if requested == "deadline":
            return "timeout"
        try:
            record = slurm.query_job(self.place.job_id) or {}
        except (SlurmError, UserError):
            return "preempted"
        if self._near_its_limit(record):
            return "timeout"
        if self._is_cancelled(record):
            return "cancelled"
        if self._is_requeued(record):
            log = self.run.path / "logs" / f"{self.place.job_id}_0_log.err"
            return slurm_verdict(log, datetime.fromtimestamp(self.started)) or "preempted"
        return "preempted"

    def start_again(self) -> str:
        """Have the job started again; returns what was done, as a sentence.

        Slurm then ends this start at once, so that everything must be on disk, and every process ready to
        leave. A controller that is busy is asked again. Raises SlurmError or UserError where nothing helped.
        """
        for _ in range(_REPEATS):
            try:
                return self._arrange_start()
            except SlurmError as error:
                _log.warning("Slurm does not answer and is asked again: %s", error)
                time.sleep(_PAUSE)
        return self._arrange_start()

    def _arrange_start(self) -> str:
        if (successor := self._successor()) is not None:
            return f"job {successor.job_id} is waiting for this one to end"
        record = slurm.query_job(self.place.job_id) or {}
        if self._is_requeued(record):
            return "Slurm has requeued the job already"
        if self._is_cancelled(record) and not self._near_its_limit(record):
            return "the job was cancelled; it does not start again"
        try:
            slurm.run_slurm("scontrol", "requeue", self.place.job_id)
        except NoAnswerError:
            raise  # it may be requeued nevertheless, which the next look shows: its processes are ended then
        except SlurmError as refusal:
            if "pending execution" in str(refusal):
                return "Slurm has requeued the job already"
            _log.warning("Slurm does not requeue job %s: %s", self.place.job_id, refusal)
            return f"job {self._submit_successor().job_id} was submitted to follow this one"
        return f"job {self.place.job_id} is requeued"

    def prepare_successor(self) -> None:
        """Where the site chains jobs, submit the next one now: this one may be killed without a warning."""
        if self.site.restart == "chain" and self._successor() is None:
            job = self._submit_successor().job_id
            _log.info("job %s will follow this one (the site's restart is chain)", job)

    def cancel_successor(self) -> None:
        """No further start is wanted: cancel the successor that waits for this job."""
        if (successor := self._successor()) is not None:
            try:
                slurm.run_slurm("scancel", "--state=PENDING", successor.job_id)
            except SlurmError as error:
                _log.warning(
                    "job %s, which follows this one, could not be cancelled: %s", successor.job_id, error
                )

    def _near_its_limit(self, record: dict[str, str]) -> bool:
        end = _end_of(record)
        return end is not None and time.time() > end - self.site.stop_before - _NEAR_THE_END

    def _is_requeued(self, record: dict[str, str]) -> bool:
        """Whether Slurm starts this job again already: it counts a restart as soon as that is decided."""
        return int(record.get("Restarts", "0")) > self.place.restarts

    def _is_cancelled(self, record: dict[str, str]) -> bool:
        """Whether the job was ended from outside; a requeue at this point would bring it back to life."""
        return record.get("JobState") in ("COMPLETING", "CANCELLED") and not self._is_requeued(record)

    def _successor(self) -> Submission | None:
        last = read_submissions(self.run)[-1]
        return last if last.dependency == self.place.job_id else None

    def _submit_successor(self) -> Submission:
        # Else sbatch takes over the settings of the job that it is called from; but it needs its controller.
        client = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
        with clean_env(), environment_variables(**client):
            return submit_run(
                self.run, recorded_job(self.run), self.site, cluster="slurm", dependency=self.place.job_id
            )


def managed_job(run: RunDirectory, place: Placement) -> ManagedJob | None:
    """This process's Slurm job where `flipscale submit` submitted it for this run, else None."""
    started = psutil.Process().create_time()
    while True:
        for submission in reversed(read_submissions(run)):
            if submission.cluster == "slurm" and submission.job_id == place.job_id:
                return ManagedJob(run, place, submission, started)
        # A job can start before its record is written.
        if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or time.time() > started + _RECORD_SECONDS:
            return None
        time.sleep(0.5)


def _end_of(record: dict[str, str]) -> float | None:
    """When the time limit strikes, in seconds since 1970."""
    limit = slurm.parse_time_limit(record.get("TimeLimit", ""))
    try:
        started = datetime.fromisoformat(record.get("StartTime", "")).timestamp()
    except ValueError:
        return None
    return None if limit is None else started + limit
