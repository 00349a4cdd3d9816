"""heartbeats/ATTEMPT/rank_NNNNN.json: every process's last sign of life, and how it ended."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flipscale.errors import Reason

BEAT_SECONDS = 5.0  # between two writes of a process that is alive
DIRECTORY = "heartbeats"
_KEPT_ATTEMPTS = 5

ProcessState = Literal["starting", "training", "saving", "stopped", "done", "failed"]


@dataclass(frozen=True)
class Heartbeat:
    """What one process last wrote about itself. All processes of a start share its `attempt`."""

    attempt: str
    """JOBID.RESTARTS under Slurm, else HOST.PID of the leading process."""
    rank: int
    world_size: int
    node: str
    pid: int
    state: ProcessState
    samples_seen: int
    step_seconds: float  # the longest of the latest steps; 0.0 before the first
    time: float  # seconds since 1970
    kind: Reason | Literal[""] = ""
    """Of a failure: code, data, out_of_memory, non_finite, disk, input, lost_process or hang."""
    message: str = ""
    """Of a failure: its last line."""
    suspects: tuple[str, ...] = ()
    """Of a failure: the nodes that it is blamed on."""

    @property
    def age(self) -> float:
        """Seconds since it was written."""
        return time.time() - self.time


def write_heartbeat(run: Path, beat: Heartbeat) -> None:
    """Replace the process's file; a reader sees the old or the new one. Not synced: only the living count."""
    path = run / DIRECTORY / beat.attempt / f"rank_{beat.rank:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(asdict(beat)))
    os.replace(partial, path)


def read_heartbeats(run: Path, attempt: str | None = None) -> list[Heartbeat]:
    """The processes' last signs by rank: those of `attempt`, or of the newest one."""
    if attempt is None:
        attempts = _attempts(run)
        if not attempts:
            return []
        attempt = attempts[-1].name
    beats: list[Heartbeat] = []
    for path in sorted((run / DIRECTORY / attempt).glob("rank_*.json")):
        try:
            record: dict[str, Any] = json.loads(path.read_text())
            record["suspects"] = tuple(record.get("suspects", ()))
            beats.append(Heartbeat(**record))
        except (OSError, ValueError, TypeError):
            continue  # removed, or of another version, since the directory was read
    return beats


def forget_old_attempts(run: Path) -> None:
    """Remove all but the newest attempts; their story is in the ledger."""
    for path in _attempts(run)[:-_KEPT_ATTEMPTS]:
        shutil.rmtree(path, ignore_errors=True)


def _attempts(run: Path) -> list[Path]:
    """Directories of attempts, oldest first."""
    try:
        found = [(path.stat().st_mtime_ns, path) for path in (run / DIRECTORY).iterdir() if path.is_dir()]
    except OSError:
        return []
    return [path for _, path in sorted(found)]
