"""The status of a run seen from outside: from the files of its directory and at most one question to Slurm.

Reading takes no locks, so training never notices it. A file that is missing, cut or being written counts for
what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flipscale.config import Job
from flipscale.errors import UserError
from flipscale.orchestration.status.history import (
    LostTime,
    SegmentStatus,
    effective_speed,
    lost_time,
    segment_of,
    segments_of,
    unix_time,
    waiting_seconds,
)
from flipscale.orchestration.status.liveness import (
    JobStatus,
    ProcessStatus,
    SlurmAnswer,
    SlurmView,
    jobs_of,
    processes_of,
    slurm_jobs_of,
)
from flipscale.orchestration.status.outlook import Evidence, RunState, outlook
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import LedgerLine
from flipscale.runs.snapshot import CheckpointStatus, RunFiles, read_files

SCHEMA = 1  # version of the JSON document; raised if a field is removed or changes its meaning

_RECENT_LINES = 20
_MOVING_SECONDS = 120.0


@dataclass(frozen=True)
class PhaseStatus:
    """How far a phase is."""

    name: str
    samples: int
    """The budget of the phase."""
    samples_done: int


@dataclass(frozen=True)
class SpeedStatus:
    """The speed of a run, and its time left."""

    images_per_second: float | None
    """The speed of all processes together, from the last log lines of this phase."""
    data_wait_fraction: float | None
    """The share of that time in which training waited for data."""
    effective_images_per_second: float | None
    """The speed over all wall time, with queues, start-ups and replays; None before a segment has ended."""
    eta_seconds: float | None
    eta_from: str | None
    """history: from the effective speed; speed: only from the recent speed; None if neither is known."""


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
        if not files.spent:
            own, remembered = slurm_jobs_of(files.submissions, files.open_segment)
            ids += own
            accounting = accounting or remembered

    answer = slurm.ask(list(dict.fromkeys(ids)), accounting=accounting)
    return [_status(files, answer) for files in gathered], problems


def _status(files: RunFiles, answer: SlurmAnswer) -> RunStatus:
    open_segment = files.open_segment
    processes = processes_of(files.heartbeats, files.now)
    jobs: tuple[JobStatus, ...] = ()
    if not files.spent:
        slurm_ids, _ = slurm_jobs_of(files.submissions, open_segment)
        jobs = jobs_of(files.run.path, files.submissions, slurm_ids, answer)
    state, following = outlook(_evidence(files, jobs, processes))

    under_way = None
    if open_segment is not None:
        under_way = _under_way(open_segment, files, processes, lost=state in ("lost", "queued"))
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
        speed=_speed(files, segments, samples, waiting),
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


def _evidence(files: RunFiles, jobs: Sequence[JobStatus], processes: Sequence[ProcessStatus]) -> Evidence:
    open_segment = files.open_segment
    return Evidence(
        run=files.run.path,
        spent=files.spent,
        jobs=jobs,
        processes=processes,
        segments=[segment_of(line) for line in files.ledger],
        open_segment=open_segment is not None,
        trained=open_segment is not None and _has_trained(open_segment, files),
        moving=files.now - files.changed < _MOVING_SECONDS,
        stop_requested=files.stop_requested,
        submitted=bool(files.submissions),
    )


def _under_way(
    line: LedgerLine, files: RunFiles, processes: Sequence[ProcessStatus], *, lost: bool
) -> SegmentStatus:
    """Return the open segment with its gains so far, by metrics and heartbeats."""
    started = unix_time(line.started) or files.now
    signs = [files.changed, *(files.now - process.age_seconds for process in processes)]
    seconds = round(max(0.0, (min(files.now, max(signs)) if lost else files.now) - started), 1)
    begun = segment_of(replace(line, detail="", seconds=seconds, gpu_seconds=seconds * line.world_size))
    seen = [files.metrics[-1].samples] if _has_trained(line, files) else []
    seen += [process.samples for process in processes if not process.ended]

    reached = files.committed if lost else max([begun.samples_from, *seen])
    return replace(
        begun,
        reason="lost" if lost else "running",
        ended=begun.ended if lost else None,
        samples_to=max(begun.samples_from, reached),
    )


def _has_trained(segment: LedgerLine, files: RunFiles) -> bool:
    """Return whether the open segment wrote the last line of the metrics."""
    started = unix_time(segment.started)
    return started is not None and any(line.finite("time") >= started for line in files.metrics[-1:])


def _speed(files: RunFiles, segments: Sequence[SegmentStatus], samples: int, waiting: float) -> SpeedStatus:
    lines = files.metrics[-_RECENT_LINES:]
    lines = [line for line in lines if line.phase == lines[-1].phase]
    began = unix_time(segments[-1].started) if segments else None
    lines = [line for line in lines if began and line.finite("time") >= began] or lines
    lines = [line for line in lines if line.finite("images_per_second") > 0]

    recent = waited = None
    if lines:
        # Lines are equally far apart in samples, so their speeds average harmonically.
        times = [1 / line.finite("images_per_second") for line in lines]
        recent = len(times) / sum(times)
        waits = [time * line.finite("data_wait_fraction") for time, line in zip(times, lines, strict=True)]
        waited = sum(waits) / sum(times)

    effective = effective_speed(segments, waiting)
    left = files.total - samples
    basis, speed = ("history", effective) if effective else ("speed", recent)
    known = speed is not None and left > 0
    eta = 0.0 if left <= 0 else None
    if known and speed:
        eta = round(left / speed, 1)

    return SpeedStatus(_rounded(recent), _rounded(waited), _rounded(effective), eta, basis if known else None)


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


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
