"""Writes the ledger: opens a segment at a start, closes it at its end, and accounts for killed segments."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flipscale import jsonl
from flipscale.processes import own_age
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import Failure
from flipscale.runs.ledger import (
    LedgerLine,
    append_to_ledger,
    close_in_place,
    read_ledger,
    timestamp,
    utc,
    write_open_segment,
)
from flipscale.runs.past_segments import account_for_the_past, recorded_quarantine
from flipscale.runs.past_starts import SlurmTimes

if TYPE_CHECKING:
    from flipscale.distributed.world import World

_log = logging.getLogger(__name__)


class LedgerWriter:
    """The ledger of one start: the leading process opens it, and closes it with the reason of the end."""

    def __init__(
        self,
        run: Path,
        resumed: Progress,
        world: World,
        attempt: str,
        slurm: SlurmTimes | None = None,
    ) -> None:
        """Account for a killed segment before this one, and open this segment.

        Args:
            run: The run directory.
            resumed: Progress of the checkpoint that the run is resumed from.
            world: The processes of this start.
            attempt: Name of the start; see `Heartbeat.attempt`.
            slurm: What Slurm says about the starts of the run; None without Slurm.

        Raises:
            UserError: If the ledger is damaged.
        """
        self._run = RunDirectory(run)
        jsonl.keep(self._run.ledger)
        account_for_the_past(self._run, resumed, attempt, slurm.past if slurm else ())

        # All durations come from a clock that nobody sets; only the two stamps are the times of day.
        lines = read_ledger(run)
        _warn_of_shorter_list(self._run, lines)
        age = own_age()
        launch = max(0.0, slurm.seconds_of_job - age) if slurm and slurm.seconds_of_job else 0.0
        self._began = time.monotonic() - age - launch
        self._training_from: float | None = None
        began = time.time() - age - launch
        self._open = LedgerLine(
            segment=len(lines),
            attempt=attempt,
            job_id=world.place.job_id,
            restarts=world.place.restarts,
            host=socket.gethostname(),
            nodes=tuple(world.place.nodes or (world.place.node,)),
            world_size=world.size,
            started=utc(began),
            ended="",
            samples_from=resumed.samples_seen,
            samples_to=resumed.samples_seen,
            digest=resumed.digest.hex(),
            content=resumed.content_hex,
            seconds=0.0,
            gpu_seconds=0.0,
            queue_seconds=_seconds_in_queue(lines, began),
            startup_seconds=0.0,
            stop_seconds=0.0,
            lost_samples=0,
            lost_seconds=0.0,
            reason="killed",
            launch_seconds=round(launch, 1),
        )
        write_open_segment(run, self._open)

    def training(self) -> None:
        """Note that the first step is about to begin, also for the case that this start is killed."""
        self._training_from = time.monotonic()
        self._open = replace(self._open, startup_seconds=round(self._training_from - self._began, 1))
        write_open_segment(self._run.path, self._open)

    def committed(self, samples: int) -> None:
        """Note that a checkpoint is on disk. If all checkpoints are lost, this shows that there were some.

        The background thread that saves may call this method; it never raises.

        Args:
            samples: Samples seen at the checkpoint.
        """
        self._open = replace(self._open, samples_to=samples)
        try:
            write_open_segment(self._run.path, self._open)
        except OSError as error:
            _log.warning("%s does not mention the newest checkpoint: %s", self._run.open_segment, error)

    def close(
        self,
        committed: Progress,
        reached: Progress,
        failure: Failure,
        *,
        stop_seconds: float = 0.0,
        seconds_since_step: float = 0.0,
    ) -> None:
        """Write the segment's line.

        Args:
            committed: Progress of the last checkpoint on disk.
            reached: Progress of the training, which may be further.
            failure: Why it ended; its kind is `done` for a spent budget.
            stop_seconds: Seconds since the request to stop.
            seconds_since_step: Seconds since the last step ended.
        """
        now = time.monotonic()
        seconds = now - self._began
        trained_from = self._training_from or now
        lost = reached.samples_seen - committed.samples_seen
        trained = reached.samples_seen - self._open.samples_from
        training = max(0.0, now - seconds_since_step - trained_from)

        line = replace(
            self._open,
            ended=utc(timestamp(self._open.started) + seconds),
            samples_to=committed.samples_seen,
            digest=committed.digest.hex(),
            content=committed.content_hex,
            seconds=round(seconds, 1),
            gpu_seconds=round(seconds * self._open.world_size, 1),
            startup_seconds=round(trained_from - self._began, 1),
            stop_seconds=round(stop_seconds, 1),
            lost_samples=lost,
            lost_seconds=round(training * lost / trained, 1) if trained else 0.0,
            reason=failure.kind,
            detail=failure.message,
            suspects=failure.suspects,
            quarantined=recorded_quarantine(self._run),
        )

        # The line first: a crash in between leaves the open segment as well, which the next start removes.
        try:
            append_to_ledger(self._run.path, line)
        except OSError:
            close_in_place(self._run.path, line)
            raise
        with suppress(OSError):
            self._run.open_segment.unlink()


def _warn_of_shorter_list(run: RunDirectory, lines: Sequence[LedgerLine]) -> None:
    """Say that records of the quarantine list are lost. Training is right without them; the audit is not."""
    counted = max((line.quarantined or 0 for line in lines), default=0)
    held = recorded_quarantine(run)
    if held is not None and held < counted:
        _log.warning(
            "%s holds %d records, but the ledger counted %d: restore it, or `flipscale data audit` fails",
            run.quarantine,
            held,
            counted,
        )


def _seconds_in_queue(lines: Sequence[LedgerLine], now: float) -> float:
    if not lines or not lines[-1].ended:
        return 0.0

    return round(max(0.0, now - timestamp(lines[-1].ended)), 1)
