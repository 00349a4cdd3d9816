"""heartbeats/ATTEMPT/rank_NNNNN.json: the last heartbeat of every process, and how the process ended."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from flipscale.documents import read_as
from flipscale.errors import Reason, UserError
from flipscale.files import overwrite
from flipscale.processes import ProcessMark

BEAT_SECONDS = 5.0
"""Seconds between two heartbeats of a process."""
DIRECTORY = "heartbeats"
_KEPT_ATTEMPTS = 5  # including the current one

ProcessEnd = Literal["stopped", "done", "failed"]
ProcessState = Literal["starting", "training", "saving", "stopped", "done", "failed"]

ENDED_STATES: tuple[ProcessEnd, ...] = get_args(ProcessEnd)
"""The states of a process that has ended."""
_ENDS = "ended"  # a folder with an empty file RANK.STATE for each process that has ended


@dataclass(frozen=True)
class Heartbeat:
    """The state of one process when it last wrote its file.

    Attributes:
        attempt: Name of the start, which all its processes share: JOBID.RESTARTS under Slurm, otherwise
            HOST.PID of the leading process.
        rank: Rank of the process.
        world_size: Number of processes.
        node: Name of the node.
        pid: Process id on the node.
        state: What the process is doing, or how it ended.
        samples_seen: Samples seen.
        step_seconds: Duration of the longest of the latest steps; 0.0 before the first.
        time: When the heartbeat was written, in seconds since 1970.
        kind: The reason of a failure: code, data, out_of_memory, non_finite, disk, input, lost_process or
            hang. Empty without a failure.
        message: The failure as a sentence; empty without a failure.
        suspects: The nodes that a failure is blamed on.
        boot: Id of the node's boot; this and the next two fields, with `pid`, are the process's mark. Empty
            if an older version wrote the heartbeat.
        ticks: Start of the process, in clock ticks since the boot.
        command: Digest of the command line of the process.
        seconds: From the start of the process to this heartbeat, by a clock that nobody sets; 0.0 if an older
            version wrote the heartbeat.
        seconds_to_step: From the start of the process to the end of its last step; 0.0 before the first.
    """

    attempt: str
    rank: int
    world_size: int
    node: str
    pid: int
    state: ProcessState
    samples_seen: int
    step_seconds: float
    time: float
    kind: Reason | Literal[""] = ""
    message: str = ""
    suspects: tuple[str, ...] = ()
    boot: str = ""
    ticks: int = 0
    command: str = ""
    seconds: float = 0.0
    seconds_to_step: float = 0.0

    @property
    def mark(self) -> ProcessMark:
        """The mark of the process, by which its node recognises it."""
        return ProcessMark(self.pid, self.boot, self.ticks, self.command)

    @property
    def age(self) -> float:
        """Seconds since the heartbeat was written."""
        return time.time() - self.time


def write_heartbeat(run: Path, beat: Heartbeat) -> None:
    """Replace the file of a process; a reader sees either the old or the new one. The last one notes the end.

    The file is not synced to disk: a heartbeat matters only while its process is alive.

    Args:
        run: The run directory.
        beat: The heartbeat.

    Raises:
        OSError: If the file cannot be written.
    """
    path = _path(run, beat.attempt, beat.rank)
    ends = path.parent / _ENDS
    ends.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    text = json.dumps(asdict(beat))
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError:
        # A full disk has no room for a second file, but the process still has to say how it ended.
        partial.unlink(missing_ok=True)
        overwrite(path, text)

    # Who finds the note reads the heartbeat, so that the note comes last.
    if beat.state in ENDED_STATES:
        (ends / f"{beat.rank}.{beat.state}").touch()


def read_heartbeats(run: Path, attempt: str | None = None) -> list[Heartbeat]:
    """Return the last heartbeats of a start, ordered by rank; files that cannot be read are left out.

    Args:
        run: The run directory.
        attempt: Name of the start; default: the newest one.
    """
    if attempt is None:
        attempts = _attempts(run)
        if not attempts:
            return []
        attempt = attempts[-1].name

    if Path(attempt).name != attempt:  # from a damaged or foreign segment.json: it does not name a start
        return []

    paths = sorted(attempt_directory(run, attempt).glob("rank_*.json"))
    return [beat for beat in map(_read, paths) if beat is not None]


def read_heartbeat(run: Path, attempt: str, rank: int) -> Heartbeat | None:
    """Return the last heartbeat of one process of a start; None if it cannot be read."""
    return _read(_path(run, attempt, rank))


def read_ends(run: Path, attempt: str) -> dict[int, ProcessEnd]:
    """Return how processes of a start have ended, by rank; those that have not are left out.

    This lists one folder, which is empty while all of them run: each of a thousand processes may look every
    few seconds. Reading all heartbeats, they would open 200,000 files per second.

    Args:
        run: The run directory.
        attempt: Name of the start.
    """
    ends: dict[int, ProcessEnd] = {}
    with suppress(OSError):
        for name in os.listdir(attempt_directory(run, attempt) / _ENDS):
            rank, _, state = name.partition(".")
            if rank.isdecimal() and state in ENDED_STATES:
                ends[int(rank)] = state
    return ends


def attempt_directory(run: Path, attempt: str) -> Path:
    """Return the directory of a start's heartbeats; each of its processes keeps it open while it trains."""
    return run / DIRECTORY / attempt


def attempt_before(run: Path, current: str) -> str:
    """Return the name of the newest start other than `current`; an empty string if there is none."""
    return next((path.name for path in reversed(_attempts(run)) if path.name != current), "")


def forget_old_attempts(run: Path) -> None:
    """Remove the heartbeats of all but the newest starts; the ledger has what matters of the others."""
    for path in _attempts(run)[:-_KEPT_ATTEMPTS]:
        shutil.rmtree(path, ignore_errors=True)


def _path(run: Path, attempt: str, rank: int) -> Path:
    return attempt_directory(run, attempt) / f"rank_{rank:05d}.json"


def _read(path: Path) -> Heartbeat | None:
    try:
        return read_as(Heartbeat, path)
    except (OSError, UserError):  # removed since the directory was read, or damaged
        return None


def _attempts(run: Path) -> list[Path]:
    """Return the directories of the starts, oldest first."""
    try:
        dated = [(path.stat().st_mtime_ns, path) for path in (run / DIRECTORY).iterdir() if path.is_dir()]
    except OSError:
        return []
    return [path for _, path in sorted(dated)]
