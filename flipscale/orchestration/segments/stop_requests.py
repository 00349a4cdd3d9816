"""Requests to stop: signals, the STOP file, the deadline. They only set a flag; all processes agree on it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

REASONS = ("stop_file", "sigint", "deadline", "sigterm", "sigusr1", "sigusr2")
"""The possible requests. Their order is part of the agreement between processes, which sum one count per
request. A person's wish comes first, then what is known for certain."""

_SIGNALS = {
    signal.SIGTERM: "sigterm",
    signal.SIGINT: "sigint",
    signal.SIGUSR1: "sigusr1",
    signal.SIGUSR2: "sigusr2",
}
STOP_SIGNALS = frozenset(int(number) for number in _SIGNALS)
"""The numbers of the signals that request a stop."""
_POLL_SECONDS = 1.0  # between two looks at the STOP file, which may be on a slow file system


class StopRequests:
    """This process's requests to stop.

    Attributes:
        deadline: The `time.monotonic()` value after which the run should stop; it may be set at any time.
        since: The `time.monotonic()` value of the first request; None before it.
    """

    def __init__(self, stop_file: Path, *, deadline: float | None = None) -> None:
        """Begin without a request.

        Args:
            stop_file: The STOP file of the run; `counts` looks for it about once per second.
            deadline: The `time.monotonic()` value after which the run should stop.
        """
        self.deadline = deadline
        self.since: float | None = None

        self._stop_file = stop_file
        self._next_look = 0.0
        self._pid = os.getpid()
        self._requested: set[str] = set()

    def listen(self) -> None:
        """Turn stop signals into requests from now on. A second SIGINT interrupts at once.

        A launcher may start Python with these signals blocked, so that an early signal waits and does not
        kill the process in the middle of an import. This method unblocks them.
        """
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

        # Slurm wakes a job's processes before it asks them to stop.
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

        # Unblock last, when every handler is in place.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def counts(self) -> list[int]:
        """Return one 0 or 1 for each of REASONS, to be summed over all processes."""
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
        # Only set the flag: the handler may run in the middle of a backward pass or of a write.
        if os.getpid() != self._pid:
            return  # a forked child that inherited the handler

        reason = _SIGNALS[signal.Signals(number)]
        if number == signal.SIGINT and reason in self._requested:
            raise KeyboardInterrupt

        self._request(reason)


def agreed_reason(counts: list[int]) -> str | None:
    """Return the first of REASONS that any process requested.

    Args:
        counts: The `counts` of all processes, summed.

    Returns:
        The reason, or None if no process requested a stop.
    """
    return next((reason for reason, count in zip(REASONS, counts, strict=True) if count), None)
