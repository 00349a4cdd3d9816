"""The files of a run as somebody finds them who only looks: each read once, whatever state it is in."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flipscale import jsonl
from flipscale.config import Job
from flipscale.jsonl import number
from flipscale.runs.directory import RunDirectory, recorded_job

_METRICS_TAIL = 256 * 1024  # bytes: hundreds of log lines
_LISTS_TAIL = 32 * 2**20  # bytes of the ledger and of the submissions: tens of thousands of lines
_QUARANTINE_COUNTED = 8 * 2**20  # bytes; a longer list is estimated from its end


@dataclass(frozen=True)
class CheckpointStatus:
    """The newest committed checkpoint."""

    path: str
    samples: int
    age_seconds: float


@dataclass(frozen=True)
class RunFiles:
    """What the directory held at `now`."""

    run: RunDirectory
    job: Job
    now: float  # seconds since 1970
    ledger: list[dict[str, Any]]
    open_segment: dict[str, Any] | None
    """segment.json, unless the ledger has closed it."""
    submissions: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    """Its last lines."""
    checkpoint: CheckpointStatus | None
    changed: float
    """Newest change of segment.json or metrics.jsonl, seconds since 1970."""
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
    """Whether a run was ever prepared at `path`; a job file alone is none."""
    return (path / "job.yaml").is_file() and (path / "checkpoints").is_dir()


def runs_below(path: Path) -> list[Path]:
    """All run directories at or below `path`, by name; runs do not lie within runs."""
    if is_run(path):
        return [path]
    found: list[Path] = []
    for directory, names, _ in os.walk(path):
        runs = [name for name in names if is_run(Path(directory, name))]
        found += [Path(directory, name) for name in runs]
        names[:] = [name for name in names if name not in runs and not name.startswith(".")]
    return sorted(found)


def read_files(run: RunDirectory) -> RunFiles:
    """Look at every file once. Raises UserError where the job file cannot be read."""
    # The open segment before the ledger: one that is closed in between is then found in both, not in none.
    open_segment = _json(run.path / "segment.json")
    ledger = jsonl.tail(run.ledger, _LISTS_TAIL)
    closed = max((number(record, "segment") for record in ledger), default=-1)
    if open_segment is not None and number(open_segment, "segment") <= closed:
        open_segment = None
    metrics = jsonl.tail(run.path / "metrics.jsonl", _METRICS_TAIL)
    quarantined, estimated = _quarantined(run.quarantine)
    return RunFiles(
        run=run,
        job=recorded_job(run),
        ledger=ledger,
        open_segment=open_segment,
        submissions=jsonl.tail(run.path / "submissions.jsonl", _LISTS_TAIL),
        metrics=[record for record in metrics if isinstance(record.get("samples"), int)],
        checkpoint=_newest_checkpoint(run),
        changed=max(_modified(run.path / name) for name in ("segment.json", "metrics.jsonl")),
        quarantined=quarantined,
        quarantined_is_estimate=estimated,
        stop_requested=run.stop_file.exists(),
        now=time.time(),
    )


def _newest_checkpoint(run: RunDirectory) -> CheckpointStatus | None:
    for manifest in sorted(run.checkpoints.glob("samples_*/manifest.json"), reverse=True):
        digits = manifest.parent.name.removeprefix("samples_")
        written = _modified(manifest)
        if digits.isdigit() and written:  # else it was deleted since the directory was read
            age = round(max(0.0, time.time() - written), 1)
            return CheckpointStatus(str(manifest.parent), int(digits), age)
    return None


def _quarantined(path: Path) -> tuple[int, bool]:
    """Records in the list, and whether that is an estimate."""
    try:
        size = path.stat().st_size
        if size <= _QUARANTINE_COUNTED:
            return path.read_bytes().count(b"\n"), False
        with open(path, "rb") as file:
            file.seek(size - _METRICS_TAIL)
            return round(file.read(_METRICS_TAIL).count(b"\n") * size / _METRICS_TAIL), True
    except OSError:
        return 0, False


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _json(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
