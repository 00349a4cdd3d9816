"""Which processes and jobs of a run are alive: by heartbeats and pids, and by one question to Slurm."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from flipscale.distributed.placement import read_placement
from flipscale.errors import UserError
from flipscale.runs.heartbeat import BEAT_SECONDS, ENDED_STATES, Heartbeat
from flipscale.runs.ledger import LedgerLine
from flipscale.runs.submissions import RecordedJob
from flipscale.slurm import JobState, SlurmError, query_accounting, query_queue

# A process is silent after this long, or after this many of its own steps if these are slow.
_SILENT_SECONDS = 12 * BEAT_SECONDS
_SILENT_STEPS = 10
UNKNOWN = "UNKNOWN"  # state of a job if Slurm could not be asked
_CLOCK_SLACK = 2.0  # seconds; process times count from the boot, in ticks
"""States of a last heartbeat: the process says that it ends."""
_JOBS_ASKED_FOR = 10  # the newest submissions: a running job and its successor are among them


StartState = Literal["current", "over", "unknown"]
"""What Slurm says about a start: its job runs, or does not, or Slurm says nothing."""


@dataclass(frozen=True)
class ProcessStatus:
    """A process of the newest start, as its heartbeat describes it."""

    rank: int
    node: str
    pid: int
    state: str
    """starting, training, saving, stopped, done or failed."""
    age_seconds: float
    silent: bool
    """Whether a heartbeat is overdue, or the process is gone."""
    gone: bool
    """Whether the process is gone: this machine does not run it, or Slurm says that its start is over."""
    samples: int
    kind: str
    """The kind of a failure, such as code or out_of_memory."""
    message: str
    """The last line of a failure."""

    @property
    def ended(self) -> bool:
        """Whether its last heartbeat said that it ends."""
        return self.state in ENDED_STATES

    @property
    def alive(self) -> bool:
        """Whether it is at work, and its heartbeats arrive."""
        return not self.ended and not self.silent


@dataclass(frozen=True)
class JobStatus:
    """A job of the run that waits, runs, or ended recently."""

    cluster: str
    """slurm, or local: a process of this machine."""
    job_id: str
    state: str
    """Slurm's word (PENDING, RUNNING, TIMEOUT, ...); RUNNING or ENDED for a local job. UNKNOWN if Slurm could
    not be asked; GONE if Slurm has forgotten the job."""
    reason: str
    """Why it waits."""
    nodes: str
    live: bool
    waits: bool
    """Whether Slurm has yet to start it."""


@dataclass(frozen=True)
class SlurmAnswer:
    """Slurm's answer about jobs; `problem` gives the reason if the answer is missing."""

    states: Mapping[str, JobState]
    source: str = ""
    """squeue; sacct if accounting was asked too; empty if nothing was asked."""
    problem: str = ""


class SlurmView:
    """Asks Slurm, and repeats its answer to the same question for some seconds.

    Args:
        seconds: How long an answer is repeated before Slurm is asked again.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._asked_at = float("-inf")
        self._question: tuple[str, ...] = ()
        self._answer = SlurmAnswer({})

    def ask(self, job_ids: Sequence[str], *, accounting: bool) -> SlurmAnswer:
        """Return the states of jobs: one query, and one more for jobs that the queue has forgotten.

        It never raises: a failure is the answer's `problem`.

        Args:
            job_ids: Ids of the jobs.
            accounting: Whether sacct can be asked about jobs that the queue has forgotten.
        """
        if not job_ids:
            return SlurmAnswer({})

        now = time.monotonic()
        if tuple(job_ids) != self._question or now - self._asked_at >= self._seconds:
            self._asked_at = now
            self._question = tuple(job_ids)
            source = "squeue"
            try:
                states = query_queue(job_ids)
                if accounting and (forgotten := [job_id for job_id in job_ids if job_id not in states]):
                    source = "sacct"
                    states |= query_accounting(forgotten)
                self._answer = SlurmAnswer(states, source)
            except UserError:
                self._answer = SlurmAnswer({}, source, f"there is no {source} on this machine")
            except (SlurmError, ValueError) as error:
                self._answer = SlurmAnswer({}, source, f"Slurm did not answer: {error}")

        return self._answer


def processes_of(beats: Sequence[Heartbeat], now: float, *, over: bool = False) -> tuple[ProcessStatus, ...]:
    """Return the processes of a start that ever wrote a heartbeat, by rank.

    Args:
        beats: The last heartbeats of the start.
        now: The current time, in seconds since 1970.
        over: Whether Slurm says that the start is over.
    """
    return tuple(_process(beat, now, over=over) for beat in beats)


def start_by_slurm(attempt: str, last_sign: float, answer: SlurmAnswer) -> StartState:
    """Return what Slurm says about a start, however fresh its last sign of life is.

    A job that Slurm does not know may belong to another user or to another cluster: that proves nothing.

    Args:
        attempt: Name of the start.
        last_sign: Its last sign of life, in seconds since 1970.
        answer: Slurm's answer.
    """
    job = answer.states.get(attempt.rpartition(".")[0])
    if job is None:
        return "unknown"
    if job.waits or not job.live:
        return "over"
    if job.started is None:
        return "unknown"

    # The job runs, but it may have started again since.
    return "over" if last_sign < job.started else "current"


def slurm_jobs_of(
    submissions: Sequence[RecordedJob], segment: LedgerLine | None
) -> tuple[tuple[str, ...], bool]:
    """Return the ids of the run's newest Slurm jobs, newest first, and whether `sacct` knows them.

    Args:
        submissions: Records of submissions.jsonl.
        segment: The open segment; it names its job, which a user's own script may have started.
    """
    ours = [job for job in submissions if job.cluster == "slurm" and job.job_id]
    ids = [job.job_id for job in reversed(ours[-_JOBS_ASKED_FOR:])]

    own = segment.job_id if segment is not None else ""
    if own and not any(job.job_id == own for job in submissions):
        ids.insert(0, own)

    return tuple(dict.fromkeys(ids)), bool(ours and ours[-1].accounting)


def jobs_of(
    run: Path, submissions: Sequence[RecordedJob], slurm_ids: Sequence[str], answer: SlurmAnswer
) -> tuple[JobStatus, ...]:
    """Return the run's live jobs, running ones first; the newest job if none is alive.

    Args:
        run: The run directory.
        submissions: Records of submissions.jsonl.
        slurm_ids: Ids of the Slurm jobs, newest first.
        answer: Slurm's answer about them.
    """
    jobs = [_slurm_job(job_id, answer) for job_id in slurm_ids]
    if submissions and submissions[-1].cluster == "local":
        jobs.insert(0, _local_job(run, submissions[-1]))

    live = sorted((job for job in jobs if job.live), key=lambda job: job.waits)
    return tuple(live or jobs[:1])


def process_exists(beat: Heartbeat) -> bool:
    """Return whether this machine runs the process of a heartbeat, and not a later one with its number."""
    if beat.boot:
        return beat.mark.lives

    # An older version wrote the heartbeat: all that is known is that the process had begun by then.
    try:
        process = psutil.Process(beat.pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # ended, but its parent has not waited for it
            return False
        return process.create_time() <= beat.time + _CLOCK_SLACK
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.Error:
        return True  # it exists, but may not be inspected


def here() -> str:
    """Return the name of this machine, as its heartbeats give it."""
    return read_placement().node


def _process(beat: Heartbeat, now: float, *, over: bool) -> ProcessStatus:
    age = max(0.0, now - beat.time)
    gone = over or (beat.node == here() and not process_exists(beat))
    patience = max(_SILENT_SECONDS, _SILENT_STEPS * beat.step_seconds)

    return ProcessStatus(
        beat.rank,
        beat.node,
        beat.pid,
        beat.state,
        round(age, 1),
        beat.state not in ENDED_STATES and (gone or age > patience),
        gone,
        beat.samples_seen,
        beat.kind,
        beat.message,
    )


def _slurm_job(job_id: str, answer: SlurmAnswer) -> JobStatus:
    known = answer.states.get(job_id)
    if known is None:
        return JobStatus("slurm", job_id, UNKNOWN if answer.problem else "GONE", "", "", False, False)
    return JobStatus("slurm", job_id, known.state, known.reason, known.nodes, known.live, known.waits)


def _local_job(run: Path, submission: RecordedJob) -> JobStatus:
    from flipscale.orchestration.cluster.local_executor import controller_lives  # here: it imports submitit

    pid = submission.job_id
    lives = controller_lives(pid, run / "logs")
    return JobStatus("local", pid, "RUNNING" if lives else "ENDED", "", here() if lives else "", lives, False)
