"""The exit of a process that may have threads blocked on dead peers."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import NoReturn

SECONDS_TO_LEAVE = 60.0  # from the end of the work to the end of the process
_log = logging.getLogger(__name__)


def guard_exit() -> None:
    """End this process by force if it does not end within `SECONDS_TO_LEAVE`.

    Slurm takes a node away if processes stay on it.
    """

    def end() -> None:
        _log.error("this process did not end within %.0f s; ended by force", SECONDS_TO_LEAVE)
        exit_now(1)

    timer = threading.Timer(SECONDS_TO_LEAVE, end)
    timer.daemon = True
    timer.start()


def exit_now(code: int) -> NoReturn:
    """Exit without interpreter shutdown, which would join threads that are blocked on dead peers."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()

    os._exit(code)
