"""ledger.jsonl: one durable line a segment, so that the samples of all segments add up to the run's."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from flipscale import jsonl
from flipscale.files import write_durably
from flipscale.progress import Progress
from flipscale.runs.failures import TRANSIENT, Failure, slurm_verdict
from flipscale.runs.heartbeat import Heartbeat, read_heartbeats

if TYPE_CHECKING:
    from flipscale.distributed.world import World

_OPEN = "segment.json"  # the segment that is under way; still there at the next start if it was killed


@dataclass(frozen=True)
class LedgerLine:
    """A start of the run: samples_from is where it began, samples_to where its last checkpoint stands."""

    segment: int
    attempt: str  # see Heartbeat.attempt
    job_id: str
    restarts: int
    host: str
    nodes: list[str]
    world_size: int
    started: str  # UTC; of the leading process
    ended: str
    samples_from: int
    samples_to: int
    digest: str  # order digest at samples_to, 16 hex digits
    seconds: float
    gpu_seconds: float  # processes x seconds
    queue_seconds: float  # between the end of the segment before and this start
    startup_seconds: float  # before the first step began
    stop_seconds: float  # from the request to stop to the end of the segment
    lost_samples: int  # trained after the last checkpoint; the next segment trains them again
    lost_seconds: float  # the time that they took
    reason: str
    """done, stopped (by a person), preempted, timeout, cancelled, killed (it left no word), rolled_back (its
    end was damaged: samples_to lies before samples_from), or the kind of a failure (see Heartbeat.kind)."""
    detail: str = ""
    suspects: tuple[str, ...] = ()
    """Nodes that a failure is blamed on."""


class Ledger:
    """Opened by the leading process at a start; closed with the reason why the segment ended."""

    def __init__(self, run: Path, resumed: Progress, world: World, attempt: str) -> None:
        """Account for what no process could write, and open this segment. Raises RunError; see
        `check_progress`."""
        self._run = run
        self._path = run / "ledger.jsonl"
        self._open = run / _OPEN
        jsonl.keep(self._path)
        self._account_for_the_past(resumed)
        lines = jsonl.read(self._path)
        self._began = psutil.Process().create_time()
        self._training_from: float | None = None
        self._first = LedgerLine(
            segment=len(lines),
            attempt=attempt,
            job_id=world.place.job_id,
            restarts=world.place.restarts,
            host=socket.gethostname(),
            nodes=list(world.place.nodes or (world.place.node,)),
            world_size=world.size,
            started=_utc(self._began),
            ended="",
            samples_from=resumed.samples_seen,
            samples_to=resumed.samples_seen,
            digest=resumed.digest.hex(),
            seconds=0.0,
            gpu_seconds=0.0,
            queue_seconds=_waited(lines, self._began),
            startup_seconds=0.0,
            stop_seconds=0.0,
            lost_samples=0,
            lost_seconds=0.0,
            reason="killed",
        )
        write_durably(self._open, json.dumps(asdict(self._first)))

    def training(self) -> None:
        """The first step is about to begin."""
        self._training_from = time.time()

    def close(
        self, committed: Progress, reached: Progress, failure: Failure, *, stop_seconds: float = 0.0
    ) -> None:
        """Write the segment's line.

        Args:
            committed: progress of the last checkpoint on disk.
            reached: progress of the training, which may be further.
            failure: why it ended; its kind is `done` for a spent budget.
            stop_seconds: since the request to stop.
        """
        now = time.time()
        seconds = now - self._began
        trained_from = self._training_from or now
        lost = reached.samples_seen - committed.samples_seen
        trained = reached.samples_seen - self._first.samples_from
        line = asdict(self._first) | {
            "ended": _utc(now),
            "samples_to": committed.samples_seen,
            "digest": committed.digest.hex(),
            "seconds": round(seconds, 1),
            "gpu_seconds": round(seconds * self._first.world_size, 1),
            "startup_seconds": round(trained_from - self._began, 1),
            "stop_seconds": round(stop_seconds, 1),
            "lost_samples": lost,
            "lost_seconds": round((now - trained_from) * lost / trained, 1) if trained else 0.0,
            "reason": failure.kind,
            "detail": failure.message,
            "suspects": failure.suspects,
        }
        jsonl.append(self._path, [line], durable=True)
        self._open.unlink()

    def _account_for_the_past(self, resumed: Progress) -> None:
        """Add what no process could write: a killed segment, or a fall back behind the last one."""
        here = {"samples_to": resumed.samples_seen, "digest": resumed.digest.hex()}
        lines = jsonl.read(self._path)
        if self._open.exists():
            killed = json.loads(self._open.read_text())
            if not lines or killed["segment"] > lines[-1]["segment"]:
                line = killed | here | _what_is_known(self._run, killed, resumed)
                jsonl.append(self._path, [line], durable=True)
                lines.append(line)
            self._open.unlink()
        if lines and lines[-1]["samples_to"] != resumed.samples_seen:
            back = lines[-1] | here | {"segment": lines[-1]["segment"] + 1, "reason": "rolled_back"}
            back |= {"samples_from": lines[-1]["samples_to"], "started": back["ended"]}
            back |= dict.fromkeys(
                ("seconds", "gpu_seconds", "queue_seconds", "startup_seconds", "stop_seconds"), 0.0
            )
            back |= {"lost_samples": 0, "lost_seconds": 0.0, "suspects": ()}
            back |= {"detail": "newer checkpoints were damaged; their samples are trained again"}
            jsonl.append(self._path, [back], durable=True)


def read_ledger(run: Path) -> list[dict[str, Any]]:
    """All closed segments, oldest first."""
    return jsonl.read(run / "ledger.jsonl")


def fruitless(lines: list[dict[str, Any]], since: float) -> list[dict[str, Any]]:
    """The last segments in a row that ended badly without bringing the run further.

    Args:
        since: segments that started before this time (seconds since 1970) do not count.
    """
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        gained = line["samples_to"] > line["samples_from"]
        if gained or line["reason"] not in TRANSIENT or _timestamp(line["started"]) < since:
            break
        if line["reason"] != "preempted":
            found.append(line)
    return found[::-1]


def _what_is_known(run: Path, killed: dict[str, Any], resumed: Progress) -> dict[str, Any]:
    """Fields of a segment that left no word, from its processes' last signs and Slurm's log."""
    started = _timestamp(killed["started"])
    beats = read_heartbeats(run, killed["attempt"])
    last = max((beat.time for beat in beats), default=_last_metrics(run, started))
    seconds = max(0.0, last - started)
    lost = max([beat.samples_seen for beat in beats] + [resumed.samples_seen]) - resumed.samples_seen
    trained = lost + resumed.samples_seen - killed["samples_from"]
    failure = _told_by(run, killed, beats)
    return {
        "ended": _utc(started + seconds),
        "seconds": round(seconds, 1),
        "gpu_seconds": round(seconds * killed["world_size"], 1),
        "lost_samples": lost,
        "lost_seconds": round(seconds * lost / trained, 1) if trained > 0 else 0.0,
        "reason": failure.kind,
        "detail": failure.message,
        "suspects": failure.suspects,
    }


def _told_by(run: Path, killed: dict[str, Any], beats: list[Heartbeat]) -> Failure:
    failed = [beat for beat in beats if beat.state == "failed"]
    log = run / "logs" / f"{killed['job_id']}_0_log.err"
    local_start = datetime.fromtimestamp(_timestamp(killed["started"]))
    from_slurm = slurm_verdict(log, local_start) if killed["job_id"] else None
    if failed:
        first = min(failed, key=lambda beat: (beat.kind == "lost_process", beat.time))
        silent = tuple(dict.fromkeys(beat.node for beat in beats if beat.state != "failed"))
        suspects = silent if first.kind == "lost_process" else first.suspects
        kind = from_slurm if first.kind == "lost_process" and from_slurm else first.kind
        return Failure(kind, f"rank {first.rank} on {first.node}: {first.message}", suspects)
    return Failure(from_slurm or "killed", "its processes left no word")


def _waited(lines: list[dict[str, Any]], now: float) -> float:
    if not lines or not lines[-1].get("ended"):
        return 0.0
    return round(max(0.0, now - _timestamp(lines[-1]["ended"])), 1)


def _last_metrics(run: Path, otherwise: float) -> float:
    try:
        return (run / "metrics.jsonl").stat().st_mtime
    except FileNotFoundError:
        return otherwise


def _utc(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="milliseconds")


def _timestamp(utc: str) -> float:
    return datetime.fromisoformat(utc).timestamp()
