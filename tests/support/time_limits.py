"""Time limits of tests, which grow with the slowness of the machine: no test judges by absolute time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

# The time of `_work` on an idle core of the machine for which the limits were chosen, in seconds.
_USUAL_SECONDS = 0.06
_VARIABLE = "FLIPSCALE_TESTS_SLOWNESS"


def time_limit(seconds: float) -> float:
    """Return the limit for something that may take `seconds` on a usual machine."""
    return seconds * slowness()


def slowness() -> float:
    """Return how often slower than usual this machine is, at least 1; measured once per run of pytest."""
    if _VARIABLE not in os.environ:
        measured = min(_work() for _ in range(3))
        os.environ[_VARIABLE] = str(max(1.0, measured / _USUAL_SECONDS))  # also for xdist's workers
    return float(os.environ[_VARIABLE])


def wait_until(condition: Callable[[], Any], seconds: float = 120, interval: float = 0.02) -> Any:
    """Return the first true value of the condition, or fail after the limit.

    Args:
        condition: A function that is called again and again; what it raises ends the wait.
        seconds: The limit on a usual machine.
        interval: Seconds between two calls.
    """
    until = time.monotonic() + time_limit(seconds)
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {time_limit(seconds):.0f} s: {condition}"
        time.sleep(interval)
    return value


class PatientPopen(subprocess.Popen[Any]):
    """A `subprocess.Popen` whose limits grow with the slowness of the machine."""

    executed = 0  # how many programs this process has executed

    def _execute_child(self, *arguments: Any) -> None:
        PatientPopen.executed += 1
        super()._execute_child(*arguments)  # pyrefly: ignore[missing-attribute]: private to subprocess

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process; see `subprocess.Popen.wait`."""
        return super().wait(None if timeout is None else time_limit(timeout))

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Exchange data until the end of the process; see `subprocess.Popen.communicate`."""
        return super().communicate(input, None if timeout is None else time_limit(timeout))


def _work() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(600_000):
        total += number * number % 7
    return time.perf_counter() - began
