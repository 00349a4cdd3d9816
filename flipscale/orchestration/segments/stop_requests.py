"""Requests to stop: signals, the STOP file, the deadline. They only set a flag; all processes agree on it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

# Order is part of the agreement between processes: a request travels as a count at its reason's place. A
# person's wish comes first, then what is known for certain.
REASONS = ("stop_file", "sigint", "deadline", "sigterm", "sigusr1", "sigusr2")
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
        deadline: time.monotonic() value after which the run should stop; may also be set later.
    """

    def __init__(self, stop_file: Path, *, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.since: float | None = None
        """time.monotonic() of the first request."""
        self._stop_file = stop_file
        self._next_look = 0.0
        self._pid = os.getpid()
        self._requested: set[str] = set()

    def listen(self) -> None:
        """Turn stop signals into requests from now on. A second SIGINT interrupts at once.

        A launcher may start Python with these signals blocked, so that one that comes before this point
        waits, and kills nobody in the middle of an import; here they are let through.
        """
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        # Slurm wakes a job's processes before it asks them to stop.
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def counts(self) -> list[int]:
        """One 0 or 1 for each of REASONS, to be summed over all processes."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _POLL_SECONDS
            if self._stop_file.exists():
                self._request("stop_file")
        if self.deadline is not None and now >= self.deadline:
            self._request("deadline")
        return [int(reason in self._requested) for reason in REASONS]

    def _request(self, reason: str) -> None:
        if self.since is None:
            self.since = time.monotonic()
        self._requested.add(reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing but the flag: the handler may run in the middle of a backward pass or of a write.
        if os.getpid() != self._pid:
            return  # a forked child that inherited the handler
        reason = _SIGNALS[signal.Signals(number)]
        if number == signal.SIGINT and reason in self._requested:
            raise KeyboardInterrupt
        self._request(reason)


def agreed_reason(counts: list[int]) -> str | None:
    """The first of REASONS that any process requested, given the summed counts."""
    return next((reason for reason, count in zip(REASONS, counts, strict=True) if count), None)
