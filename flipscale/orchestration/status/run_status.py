"""The status of a run seen from outside: from the files of its directory and at most one question to Slurm.

Reading takes no locks, so training never notices it. A file that is missing, cut or being written counts for
what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Job
from flipscale.errors import UserError
from flipscale.orchestration.status.history import (
    LostTime,
    SegmentStatus,
    lost_time,
    segment_of,
    segments_of,
    waiting_seconds,
)
from flipscale.orchestration.status.liveness import (
    JobStatus,
    ProcessStatus,
    SlurmAnswer,
    SlurmView,
    StartState,
    jobs_of,
    processes_of,
    slurm_jobs_of,
    start_by_slurm,
)
from flipscale.orchestration.status.outlook import Evidence, RunState, outlook
from flipscale.orchestration.status.segment_under_way import has_trained, segment_under_way
from flipscale.orchestration.status.speed import SpeedStatus, speed_of
from flipscale.runs.directory import RunDirectory
from flipscale.runs.snapshot import CheckpointStatus, RunFiles, read_files

SCHEMA = 1  # version of the JSON document; raised if a field is removed or changes its meaning

_MOVING_SECONDS = 120.0
_LEAVING_SECONDS = 86_400.0  # in which the job of a finished run has certainly left its nodes


@dataclass(frozen=True)
class PhaseStatus:
    """How far a phase is."""

    name: str
    samples: int
    """The budget of the phase."""
    samples_done: int


@dataclass(frozen=True)
class TrainingStatus:
    """The last line of the metrics."""

    phase: str
    step: int
    loss: float | None
    lr: float
    skipped_steps: int
    age_seconds: float


@dataclass(frozen=True)
class RunStatus:
    """A run as it is now; `dataclasses.asdict` makes it the JSON document of `flipscale status`."""

    schema: int
    path: str
    name: str
    time: float  # seconds since 1970
    state: RunState
    next: str
    samples: int
    """The samples trained so far; if the run is at rest, those of the newest checkpoint."""
    samples_total: int
    phases: tuple[PhaseStatus, ...]
    speed: SpeedStatus
    training: TrainingStatus | None
    checkpoint: CheckpointStatus | None
    gpu_hours: float
    lost: LostTime
    segments: tuple[SegmentStatus, ...]
    jobs: tuple[JobStatus, ...]
    slurm: str
    """squeue or sacct if Slurm was asked, or why it did not answer."""
    world_size: int
    processes: tuple[ProcessStatus, ...]
    unheard: int
    """Processes of the newest start that never wrote a heartbeat, while others did."""
    quarantined: int
    quarantined_is_estimate: bool
    stop_requested: bool


def read_status(path: Path, slurm: SlurmView) -> RunStatus:
    """Return the status of a run.

    Args:
        path: The run directory.
        slurm: The view through which Slurm is asked.

    Raises:
        UserError: If the job file of the run cannot be read.
    """
    statuses, problems = read_statuses([path], slurm)
    if problems:
        raise UserError(problems[0])
    return statuses[0]


def read_statuses(paths: Sequence[Path], slurm: SlurmView) -> tuple[list[RunStatus], list[str]]:
    """Return the status of several runs, with one question to Slurm, and a sentence per unreadable run."""
    gathered: list[RunFiles] = []
    problems: list[str] = []
    for path in paths:
        try:
            gathered.append(read_files(RunDirectory(path)))
        except UserError as error:
            problems.append(str(error))

    ids: list[str] = []
    accounting = False
    for files in gathered:
        own, remembered = _slurm_jobs(files)
        ids += own
        accounting = accounting or (remembered and not files.spent)

    answer = slurm.ask(list(dict.fromkeys(ids)), accounting=accounting)
    return [_status(files, answer) for files in gathered], problems


def _status(files: RunFiles, answer: SlurmAnswer) -> RunStatus:
    open_segment = files.open_segment
    start = _start(files, answer)
    processes = processes_of(files.heartbeats, files.now, over=start == "over")
    slurm_ids, _ = _slurm_jobs(files)
    jobs = jobs_of(files.run.path, files.submissions, slurm_ids, answer)
    state, following = outlook(_evidence(files, jobs, processes, start))

    under_way = None
    if open_segment is not None:
        lost = start == "over" or state in ("lost", "queued")
        under_way = segment_under_way(open_segment, files, processes, lost=lost)
    segments = segments_of(files.ledger, files.submissions, under_way)

    samples = files.committed
    if under_way is not None and under_way.reason == "running":
        samples = max(samples, under_way.samples_to)
    waiting = waiting_seconds(segments, files.submissions, files.now) if state == "queued" else 0.0
    world_size = segments[-1].world_size if segments else 0

    return RunStatus(
        schema=SCHEMA,
        path=str(files.run.path),
        name=files.job.name,
        time=files.now,
        state=state,
        next=following,
        samples=samples,
        samples_total=files.total,
        phases=_phases(files.job, samples),
        speed=speed_of(files, segments, samples, waiting),
        training=_training(files),
        checkpoint=files.checkpoint,
        gpu_hours=round(sum(segment.gpu_hours for segment in segments), 4),
        lost=lost_time(segments, waiting),
        segments=segments,
        jobs=jobs,
        slurm=answer.problem or (answer.source if any(job.cluster == "slurm" for job in jobs) else ""),
        world_size=world_size,
        processes=processes,
        unheard=max(0, world_size - len(processes)) if processes and under_way else 0,
        quarantined=files.quarantined,
        quarantined_is_estimate=files.quarantined_is_estimate,
        stop_requested=files.stop_requested,
    )


def _slurm_jobs(files: RunFiles) -> tuple[tuple[str, ...], bool]:
    """Return the ids of the Slurm jobs to ask about, and whether `sacct` knows them; see `slurm_jobs_of`."""
    if files.spent and files.checkpoint is not None and files.checkpoint.age_seconds > _LEAVING_SECONDS:
        return (), False
    return slurm_jobs_of(files.submissions, files.open_segment)


def _start(files: RunFiles, answer: SlurmAnswer) -> StartState:
    """Return what Slurm says about the start that gave the last signs of life."""
    if files.heartbeats:
        last = max(beat.time for beat in files.heartbeats)
        return start_by_slurm(files.heartbeats[0].attempt, last, answer)
    if files.open_segment is not None:
        return start_by_slurm(files.open_segment.attempt, files.changed, answer)
    return "unknown"


def _evidence(
    files: RunFiles, jobs: Sequence[JobStatus], processes: Sequence[ProcessStatus], start: StartState
) -> Evidence:
    open_segment = files.open_segment
    return Evidence(
        run=files.run.path,
        spent=files.spent,
        saved=files.checkpoint is not None,
        jobs=jobs,
        processes=processes,
        segments=[segment_of(line) for line in files.ledger],
        open_segment=open_segment is not None,
        start=start,
        trained=open_segment is not None and has_trained(open_segment, files),
        moving=files.now - files.changed < _MOVING_SECONDS,
        stop_requested=files.stop_requested,
        submitted=bool(files.submissions),
    )


def _training(files: RunFiles) -> TrainingStatus | None:
    if not files.metrics:
        return None
    last = files.metrics[-1]
    loss = last.column("loss")
    return TrainingStatus(
        last.phase,
        last.step,
        loss if math.isfinite(loss) else None,  # JSON has no NaN
        last.finite("lr"),
        int(last.finite("skipped_steps")),
        round(max(0.0, files.now - last.finite("time")), 1),
    )


def _phases(job: Job, samples: int) -> tuple[PhaseStatus, ...]:
    phases: list[PhaseStatus] = []
    for phase in job.phases:
        phases.append(PhaseStatus(phase.name, phase.samples, min(phase.samples, samples)))
        samples -= phases[-1].samples_done
    return tuple(phases)
