"""Temporary directories that are gone after SIGTERM, too."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn


class _Terminated(BaseException):
    """SIGTERM came. Not an Exception: nothing may take it for an error of its own."""


@contextmanager
def scratch_directory() -> Generator[Path]:
    """Yield an empty directory, which is removed at the end of the block.

    If SIGTERM comes meanwhile, the block ends with an exception, the directory is removed, and the process
    ends by that signal. A handler that the program has set before stays in charge.

    Raises:
        OSError: If the directory cannot be made; TMPDIR names where.
    """
    with _ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="flipscale_") as directory:
        yield Path(directory)


@contextmanager
def _ending_on_sigterm() -> Generator[None]:
    own_thread = threading.current_thread() is threading.main_thread()
    if not own_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child must not remove what its parent uses
            _die(number)
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        _die(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _die(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # not reached, unless the signal is blocked
