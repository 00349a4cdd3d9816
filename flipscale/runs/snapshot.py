"""The files of a run as an observer reads them: each once, and without an error if one is damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Job
from flipscale.files import open_regular
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.heartbeat import Heartbeat, read_heartbeats
from flipscale.runs.ledger import LedgerLine, read_open_segment, tail_ledger
from flipscale.runs.manifest import committed_checkpoints
from flipscale.runs.metrics import MetricsLine, tail_metrics
from flipscale.runs.submissions import RecordedJob, tail_submissions

_METRICS_TAIL = 256 * 1024  # bytes: hundreds of log lines
_LISTS_TAIL = 32 * 2**20  # bytes of the ledger and of the submissions: tens of thousands of lines
_QUARANTINE_COUNTED = 8 * 2**20  # bytes; the length of a longer list is estimated from its end


@dataclass(frozen=True)
class CheckpointStatus:
    """The newest committed checkpoint.

    Attributes:
        path: Its directory.
        samples: Samples seen.
        age_seconds: Seconds since it was committed.
    """

    path: str
    samples: int
    age_seconds: float


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory at one moment.

    Attributes:
        run: The paths of the run.
        job: The job of its last start.
        now: The moment, in seconds since 1970.
        ledger: The closed segments, oldest first.
        open_segment: The segment under way, unless the ledger has closed it.
        heartbeats: The last heartbeats of the open segment's processes, by rank; of the newest start if
            there are none.
        submissions: The submitted jobs, oldest first.
        metrics: The last lines of metrics.jsonl.
        checkpoint: The newest committed checkpoint.
        changed: Newest change of segment.json or metrics.jsonl, in seconds since 1970.
        quarantined: Number of lines of the quarantine list.
        quarantined_is_estimate: Whether that number is an estimate.
        stop_requested: Whether the STOP file exists.
    """

    run: RunDirectory
    job: Job
    now: float
    ledger: Sequence[LedgerLine]
    open_segment: LedgerLine | None
    heartbeats: Sequence[Heartbeat]
    submissions: Sequence[RecordedJob]
    metrics: Sequence[MetricsLine]
    checkpoint: CheckpointStatus | None
    changed: float
    quarantined: int
    quarantined_is_estimate: bool
    stop_requested: bool

    @property
    def total(self) -> int:
        """The whole budget in samples."""
        return sum(phase.samples for phase in self.job.phases)

    @property
    def committed(self) -> int:
        """Samples of the newest checkpoint."""
        return self.checkpoint.samples if self.checkpoint else 0

    @property
    def spent(self) -> bool:
        """Whether a checkpoint holds the whole budget."""
        return self.committed >= self.total


def is_run(path: Path) -> bool:
    """Return whether a run was ever prepared at `path`; a job file by itself is not a run.

    A run whose checkpoints are lost is still one: its ledger shows it, or the segment that was killed.
    """
    run = RunDirectory(path)
    signs = (run.checkpoints, run.ledger, run.open_segment)
    return run.job.is_file() and any(map(os.path.lexists, signs))


def runs_below(path: Path) -> list[Path]:
    """Return all run directories at or below `path`, by name; runs do not contain runs."""
    if is_run(path):
        return [path]

    paths: list[Path] = []
    for directory, names, _ in os.walk(path):
        runs = [name for name in names if is_run(Path(directory, name))]
        paths += [Path(directory, name) for name in runs]
        names[:] = [name for name in names if name not in runs and not name.startswith(".")]
    return sorted(paths)


def read_files(run: RunDirectory) -> RunFiles:
    """Read every file once.

    Raises:
        UserError: If the job file cannot be read.
    """
    # The open segment before the ledger: one that is closed in between is then in both, not in neither.
    open_segment = read_open_segment(run.path)
    ledger = tail_ledger(run.path, _LISTS_TAIL)
    closed = max((line.segment for line in ledger), default=-1)
    if open_segment is not None and open_segment.segment <= closed:
        open_segment = None
    if open_segment is not None and open_segment.ended:  # the disk had no room for its line in the ledger
        ledger.append(open_segment)
        open_segment = None

    attempt = open_segment.attempt if open_segment else ""
    quarantined, estimated = _quarantined(run.quarantine)
    return RunFiles(
        run=run,
        job=recorded_job(run),
        ledger=ledger,
        open_segment=open_segment,
        heartbeats=(attempt and read_heartbeats(run.path, attempt)) or read_heartbeats(run.path),
        submissions=tail_submissions(run, _LISTS_TAIL),
        metrics=tail_metrics(run.path, _METRICS_TAIL),
        checkpoint=_newest_checkpoint(run),
        changed=max(_modified(run.open_segment), _modified(run.metrics)),
        quarantined=quarantined,
        quarantined_is_estimate=estimated,
        stop_requested=run.stop_file.exists(),
        now=time.time(),
    )


def _newest_checkpoint(run: RunDirectory) -> CheckpointStatus | None:
    for checkpoint in reversed(committed_checkpoints(run)):
        written = _modified(checkpoint.manifest)
        if written:  # else it was deleted since the directory was read
            age = round(max(0.0, time.time() - written), 1)
            return CheckpointStatus(str(checkpoint.path), checkpoint.samples, age)
    return None


def _quarantined(path: Path) -> tuple[int, bool]:
    """Return the number of records in the list, and whether it is an estimate."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _QUARANTINE_COUNTED:
                return file.read().count(b"\n"), False
            file.seek(size - _METRICS_TAIL)
            return round(file.read(_METRICS_TAIL).count(b"\n") * size / _METRICS_TAIL), True
    except OSError:
        return 0, False


def _modified(path: Path) -> float:
    """Return when a file was last changed, in seconds since 1970; 0.0 if the file is missing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
