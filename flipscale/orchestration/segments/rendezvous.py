"""The meeting of a start's processes, which a process leaves by itself if it is asked to stop meanwhile."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NoReturn

from flipscale.orchestration.segments.stop_requests import STOP_SIGNALS, StopRequests

SECONDS_TO_MEET = 3.0
"""Seconds that the processes still have to meet once one of them is asked to stop. If all are alive, they
meet and stop together before the first step."""

_LOOK_SECONDS = 0.2  # between two looks at whether they have met


@contextmanager
def bounded_rendezvous(stop: StopRequests, leave: Callable[[], NoReturn]) -> Generator[None]:
    """Call `leave` in a thread if a stop is requested and the context does not end soon after it.

    The processes meet in C++, where Python's signal handlers do not run. A process whose peer was killed
    would wait there until Slurm kills it as well.

    Args:
        stop: This process's requests to stop, which listens already.
        leave: A function that ends this process.
    """
    met = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_watch, args=(stop, reader, met, leave), name="rendezvous", daemon=True)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        met.set()
        os.write(writer, b"\0")  # no signal: only wakes the thread
        thread.join()
        os.close(reader)
        os.close(writer)


def _watch(stop: StopRequests, reader: int, met: threading.Event, leave: Callable[[], NoReturn]) -> None:
    while stop.since is None and not _was_signalled(reader):
        if met.is_set():
            return

    if not met.wait(SECONDS_TO_MEET):
        leave()


def _was_signalled(reader: int) -> bool:
    """Return whether a stop signal came within `_LOOK_SECONDS`."""
    readable, _, _ = select.select((reader,), (), (), _LOOK_SECONDS)
    return bool(readable) and not STOP_SIGNALS.isdisjoint(os.read(reader, 4096))
