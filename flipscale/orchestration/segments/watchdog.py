"""A thread next to training: it leaves signs of life, and ends a process whose steps no longer end."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from flipscale.config import Hang
from flipscale.distributed.world import World
from flipscale.orchestration.segments.peers import await_reports
from flipscale.processes import own_age, own_mark
from flipscale.runs.failures import Failure, verdict
from flipscale.runs.heartbeat import (
    BEAT_SECONDS,
    Heartbeat,
    ProcessState,
    attempt_directory,
    forget_old_attempts,
    read_ends,
    read_heartbeat,
    read_heartbeats,
    write_heartbeat,
)

_LOOK_SECONDS = 1.0  # between two looks at the steps
_GRACE_AFTER_PEER = 10.0  # seconds that the training has to notice by itself that a peer failed
_log = logging.getLogger(__name__)


class Watchdog:
    """The watch over the steps of one process.

    A step may take `limits.factor` times the longest of the latest 20, or `limits.least` if that is more.
    The limit is `limits.start` until the first step, in a save, and between two signs of an evaluation.

    If a step does not end, every process of the job notices, since all of them wait for the one that hangs.
    Each process then writes the Python stacks of its threads to its log, and exits with code 1 after
    `on_hang`.
    """

    def __init__(
        self, run: Path, world: World, attempt: str, limits: Hang, on_hang: Callable[[Failure], None]
    ) -> None:
        """Prepare the watch; `start` begins it.

        Args:
            run: The run directory.
            world: The processes of this start.
            attempt: The name that all processes of this start share.
            limits: When a step that does not end is given up.
            on_hang: A function to call with the failure before the process ends, to have the job started
                again.
        """
        self._run = run
        self._world = world
        self._attempt = attempt
        self._limits = limits
        self._on_hang = on_hang

        self._state: ProcessState = "starting"
        self._samples = 0
        self._steps: deque[float] = deque(maxlen=20)
        self._last_step = time.monotonic()
        self._next_beat = 0.0
        self._mark = own_mark()
        self._held: int | None = None
        self._trained_at: float | None = None

        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, samples_seen: int) -> None:
        """Leave the first sign of life, and watch from now on.

        Args:
            samples_seen: The samples that the run has seen.
        """
        self._samples = samples_seen
        if self._world.leads:
            forget_old_attempts(self._run)

        self._beat()
        self._hold_attempt()
        self._thread.start()

    def step(self, samples_seen: int) -> None:
        """Note that a step has ended.

        Args:
            samples_seen: The samples that the run has seen.
        """
        now = time.monotonic()

        # The first step compiles and warms up: its time is not a measure.
        if self._state == "training":
            self._steps.append(now - self._last_step)

        self._state = "training"
        self._last_step = now
        self._trained_at = now
        self._samples = samples_seen

    def alive(self) -> None:
        """Note progress other than a step, such as a batch of an evaluation."""
        self._last_step = time.monotonic()

    @contextmanager
    def long_operation(self) -> Generator[None]:
        """Allow `limits.start` for what runs inside, counted from the last `alive`."""
        before = self._state
        self._state = "saving"
        try:
            yield
        finally:
            self._state = before
            self._last_step = time.monotonic()

    def close(self, state: ProcessState, failure: Failure | None = None) -> None:
        """Leave the last sign of life, and end the thread.

        Args:
            state: How the process ended.
            failure: Why it ended, if something failed.
        """
        self._closed.set()
        self._state = state
        self._beat(failure)

        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def cause_of(self, own: Failure) -> Failure:
        """Return the cause of this process's failure, as the last signs of all processes show it.

        A process that lost a peer waits for these signs, and has left its own already.
        """
        if own.kind == "lost_process":
            await_reports(self._run, self._attempt, self._world.place)
        return verdict(own, read_heartbeats(self._run, self._attempt))

    @property
    def seconds_since_step(self) -> float:
        """The seconds since the last step ended, or since the start if there was none."""
        return time.monotonic() - (self._trained_at or self._last_step)

    @property
    def limit(self) -> float:
        """The seconds that the current step may take."""
        if self._state != "training":
            return self._limits.start

        return max(self._limits.least, self._limits.factor * max(self._steps, default=self._limits.start))

    def _hold_attempt(self) -> None:
        """Keep the directory of the heartbeats open: it shows that this process trains in this run."""
        with suppress(OSError):
            self._held = os.open(attempt_directory(self._run, self._attempt), os.O_RDONLY | os.O_DIRECTORY)

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if now >= self._next_beat:
                self._next_beat = now + BEAT_SECONDS
                self._beat()
                if now - self._last_step > 2 * BEAT_SECONDS:
                    self._look_at_peers()

            if now - self._last_step > self.limit:
                self._end(self._hang(now - self._last_step))

    def _look_at_peers(self) -> None:
        """End this process if a peer has failed and training, in a GPU collective, does not notice."""
        for rank, state in read_ends(self._run, self._attempt).items():
            if state != "failed" or rank == self._world.rank:
                continue
            beat = read_heartbeat(self._run, self._attempt, rank)
            if beat is not None and beat.state == "failed" and beat.age > _GRACE_AFTER_PEER:
                self._end(Failure(beat.kind or "code", f"rank {rank} on {beat.node}: {beat.message}"))

    def _hang(self, seconds: float) -> Failure:
        beats = read_heartbeats(self._run, self._attempt)
        silent = [beat for beat in beats if beat.state != "failed" and beat.age > 2 * BEAT_SECONDS]
        hang = f"no step for {seconds:.0f} s (limit {self.limit:.0f} s, in state {self._state})"
        if not silent:
            return Failure("hang", f"{hang}; every process still gives signs of life")

        nodes = tuple(dict.fromkeys(beat.node for beat in silent))
        ranks = ", ".join(f"{beat.rank} on {beat.node} for {beat.age:.0f} s" for beat in silent[:8])
        return Failure("hang", f"{hang}; no sign of rank {ranks}", nodes)

    def _end(self, failure: Failure) -> None:
        if self._closed.is_set():
            return

        # Write the stacks before anything that could hang as well.
        _log.error("ending this process: %s", failure.message)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)

        # Leave the last sign before the wait: the peers read it meanwhile. All have their stacks to write.
        self.close("failed", failure)
        await_reports(self._run, self._attempt, self._world.place)
        self._on_hang(failure)
        os._exit(1)

    def _beat(self, failure: Failure | None = None) -> None:
        age = own_age()
        since_step = None if self._trained_at is None else time.monotonic() - self._trained_at
        beat = Heartbeat(
            attempt=self._attempt,
            rank=self._world.rank,
            world_size=self._world.size,
            node=self._world.place.node,
            pid=self._mark.pid,
            state=self._state,
            samples_seen=self._samples,
            step_seconds=round(max(self._steps, default=0.0), 4),
            time=time.time(),
            kind=failure.kind if failure else "",
            message=failure.message if failure else "",
            suspects=failure.suspects if failure else (),
            boot=self._mark.boot,
            ticks=self._mark.ticks,
            command=self._mark.command,
            seconds=round(age, 3),
            seconds_to_step=0.0 if since_step is None else round(max(0.0, age - since_step), 3),
        )

        # A full or slow disk must not end a healthy training.
        with self._lock, suppress(OSError):
            write_heartbeat(self._run, beat)
