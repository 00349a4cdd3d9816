"""Requests to stop: signals, the STOP file, the deadline. They only set a flag; all processes agree on it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

# Order is part of the agreement between processes: a request travels as a count at its reason's place.
REASONS = ("sigterm", "sigint", "sigusr1", "sigusr2", "stop_file", "deadline")
_SIGNALS = {
    signal.SIGTERM: "sigterm",
    signal.SIGINT: "sigint",
    signal.SIGUSR1: "sigusr1",
    signal.SIGUSR2: "sigusr2",
}
_POLL_SECONDS = 1.0  # between two looks at the STOP file, which may lie on a slow file system


class StopRequests:
    """Collects this process's requests to stop.

    Args:
        stop_file: looked for about once a second.
        deadline: time.monotonic() value after which the run should stop.
    """

    def __init__(self, stop_file: Path, *, deadline: float | None = None) -> None:
        self._stop_file = stop_file
        self._deadline = deadline
        self._next_look = 0.0
        self._pid = os.getpid()
        self._requested: set[str] = set()

    def listen(self) -> None:
        """Turn stop signals into requests from now on. A second SIGINT interrupts at once."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def counts(self) -> list[int]:
        """One 0 or 1 for each of REASONS, to be summed over all processes."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _POLL_SECONDS
            if self._stop_file.exists():
                self._requested.add("stop_file")
        if self._deadline is not None and now >= self._deadline:
            self._requested.add("deadline")
        return [int(reason in self._requested) for reason in REASONS]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing but the flag: the handler may run in the middle of a backward pass or of a write.
        if os.getpid() != self._pid:
            return  # a forked child that inherited the handler
        reason = _SIGNALS[signal.Signals(number)]
        if number == signal.SIGINT and reason in self._requested:
            raise KeyboardInterrupt
        self._requested.add(reason)


def agreed_reason(counts: list[int]) -> str | None:
    """The first of REASONS that any process requested, given the summed counts."""
    return next((reason for reason, count in zip(REASONS, counts, strict=True) if count), None)
