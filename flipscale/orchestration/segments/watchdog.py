"""A thread beside the training: leaves signs of life, and ends a process whose steps have stopped coming."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flipscale.config import Hang
from flipscale.distributed.world import World
from flipscale.runs.failures import Failure
from flipscale.runs.heartbeat import (
    BEAT_SECONDS,
    Heartbeat,
    ProcessState,
    forget_old_attempts,
    read_heartbeats,
    write_heartbeat,
)

_LOOK_SECONDS = 1.0
_GRACE_AFTER_PEER = 10.0  # seconds that the training has to notice by itself that a peer failed
_log = logging.getLogger(__name__)


class Watchdog:
    """Watches the steps of one process.

    A step may take `limits.factor` times the longest of the latest ones, and never less than `limits.least`;
    until the first step, in a save, and between two signs of an evaluation, `limits.start`. When a step does
    not end, every process of the job notices, since all of them wait for the one that hangs: each writes the
    Python stacks of its threads to its log, and ends with code 1 after `on_hang`.

    Args:
        attempt: the name that all processes of this start share.
        on_hang: called with the failure before the process ends, to have the job started again.
    """

    def __init__(
        self, run: Path, world: World, attempt: str, limits: Hang, on_hang: Callable[[Failure], None]
    ) -> None:
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
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, samples_seen: int) -> None:
        self._samples = samples_seen
        if self._world.leads:
            forget_old_attempts(self._run)
        self._beat()
        self._thread.start()

    def step(self, samples_seen: int) -> None:
        """A step has ended."""
        now = time.monotonic()
        if self._state == "training":
            self._steps.append(now - self._last_step)
        self._state = "training"
        self._last_step, self._samples = now, samples_seen

    def alive(self) -> None:
        """Something other than a step has come forward, such as an evaluation by a batch."""
        self._last_step = time.monotonic()

    @contextmanager
    def long_operation(self) -> Iterator[None]:
        """Inside, no step is expected for `limits.start`, counted from the last `alive`."""
        before, self._state = self._state, "saving"
        try:
            yield
        finally:
            self._state, self._last_step = before, time.monotonic()

    def close(self, state: ProcessState, failure: Failure | None = None) -> None:
        """Leave the last sign; the thread ends."""
        self._closed.set()
        self._state = state
        self._beat(failure)

    @property
    def limit(self) -> float:
        """Seconds that the present step may take."""
        if self._state != "training":
            return self._limits.start
        return max(self._limits.least, self._limits.factor * max(self._steps, default=self._limits.start))

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
        """End where a peer has failed and the training does not notice: a GPU collective waits for ever."""
        for beat in read_heartbeats(self._run, self._attempt):
            if beat.state == "failed" and beat.rank != self._world.rank and beat.age > _GRACE_AFTER_PEER:
                self._end(Failure(beat.kind or "code", f"rank {beat.rank} on {beat.node}: {beat.message}"))

    def _hang(self, seconds: float) -> Failure:
        beats = read_heartbeats(self._run, self._attempt)
        silent = [beat for beat in beats if beat.state != "failed" and beat.age > 2 * BEAT_SECONDS]
        told = f"no step for {seconds:.0f} s (limit {self.limit:.0f} s, in state {self._state})"
        if not silent:
            return Failure("hang", f"{told}; every process still gives signs")
        nodes = tuple(dict.fromkeys(beat.node for beat in silent))
        ranks = ", ".join(f"{beat.rank} on {beat.node} for {beat.age:.0f} s" for beat in silent[:8])
        return Failure("hang", f"{told}; no sign of rank {ranks}", nodes)

    def _end(self, failure: Failure) -> None:
        if self._closed.is_set():
            return
        _log.error("ending this process: %s", failure.message)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self.close("failed", failure)
        self._on_hang(failure)
        os._exit(1)

    def _beat(self, failure: Failure | None = None) -> None:
        beat = Heartbeat(
            self._attempt,
            self._world.rank,
            self._world.size,
            self._world.place.node,
            os.getpid(),
            self._state,
            self._samples,
            round(max(self._steps, default=0.0), 4),
            time.time(),
            failure.kind if failure else "",
            failure.message if failure else "",
            failure.suspects if failure else (),
        )
        # A full or slow disk must not end a training that goes well.
        with self._lock, suppress(OSError):
            write_heartbeat(self._run, beat)
