"""ledger.jsonl: one durable line a segment, so that the samples of all segments add up to the run's."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flipscale import jsonl
from flipscale.progress import Progress
from flipscale.world import World

_OPEN = "segment.json"  # the segment that is under way; still there at the next start if it was killed


@dataclass(frozen=True)
class Segment:
    """A start of the run: samples_from is where it began, samples_to where its last checkpoint stands."""

    segment: int
    started: str  # UTC
    job_id: str
    host: str
    world_size: int
    samples_from: int
    samples_to: int
    digest: str  # order digest at samples_to, 16 hex digits
    seconds: float
    gpu_seconds: float  # processes x seconds
    reason: str
    """done, a stop reason (sigterm, stop_file, ...), failed, killed (it left no word), or rolled_back
    (its end was damaged: samples_to lies before samples_from)."""
    detail: str = ""


class Ledger:
    """Opened by the leading process at a start; closed with the reason why the segment ended."""

    def __init__(self, run: Path, resumed: Progress, world: World) -> None:
        self._path = run / "ledger.jsonl"
        self._open = run / _OPEN
        jsonl.keep(self._path)
        self._account_for_the_past(resumed)
        self._began = time.monotonic()
        self._first = Segment(
            segment=len(jsonl.read(self._path)),
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            job_id=os.environ.get("SLURM_JOB_ID", ""),
            host=socket.gethostname(),
            world_size=world.size,
            samples_from=resumed.samples_seen,
            samples_to=resumed.samples_seen,
            digest=format(resumed.digest, "016x"),
            seconds=0.0,
            gpu_seconds=0.0,
            reason="killed",
        )
        self._open.write_text(json.dumps(asdict(self._first)))

    def close(self, progress: Progress, reason: str, detail: str = "") -> None:
        """Write the segment's line; `progress` is that of its last committed checkpoint."""
        seconds = time.monotonic() - self._began
        line = asdict(self._first) | {
            "samples_to": progress.samples_seen,
            "digest": format(progress.digest, "016x"),
            "seconds": round(seconds, 1),
            "gpu_seconds": round(seconds * self._first.world_size, 1),
            "reason": reason,
            "detail": detail,
        }
        jsonl.append(self._path, [line], durable=True)
        self._open.unlink()

    def _account_for_the_past(self, resumed: Progress) -> None:
        """Add what no process could write: a killed segment, or a fall back behind the last one."""
        here = {"samples_to": resumed.samples_seen, "digest": format(resumed.digest, "016x")}
        lines = jsonl.read(self._path)
        if self._open.exists():
            killed = json.loads(self._open.read_text())
            if not lines or killed["segment"] > lines[-1]["segment"]:
                seconds = _seconds_until_last_sign(self._path.parent, killed["started"])
                killed |= {"seconds": seconds, "gpu_seconds": seconds * killed["world_size"]}
                jsonl.append(self._path, [killed | here], durable=True)
                lines.append(killed | here)
            self._open.unlink()
        if lines and lines[-1]["samples_to"] != resumed.samples_seen:
            back = lines[-1] | here | {"segment": lines[-1]["segment"] + 1, "reason": "rolled_back"}
            back |= {"samples_from": lines[-1]["samples_to"], "seconds": 0.0, "gpu_seconds": 0.0}
            back |= {"detail": "newer checkpoints were damaged; their samples are trained again"}
            jsonl.append(self._path, [back], durable=True)


def read_ledger(run: Path) -> list[dict[str, Any]]:
    """All closed segments, oldest first."""
    return jsonl.read(run / "ledger.jsonl")


def _seconds_until_last_sign(run: Path, started: str) -> float:
    """Seconds from `started` to the last line of metrics: what a killed segment is known to have run."""
    try:
        last = (run / "metrics.jsonl").stat().st_mtime
    except FileNotFoundError:
        return 0.0
    return round(max(0.0, last - datetime.fromisoformat(started).timestamp()), 1)
