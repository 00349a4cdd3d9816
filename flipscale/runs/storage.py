"""The storage of a run when it is away for a moment: reads are repeated, and then the start ends."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flipscale.errors import StoppedEarly, words_of

_log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt; one attempt more than there are pauses."""

# What is asked for does not exist, or is something else than a file: another attempt would say the same.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}


def read_patiently(read: Callable[[], T], path: Path) -> T:
    """Read from the storage of a run, with further attempts as long as the storage does not answer.

    A server that is away, a mount that is not there yet, or a process out of descriptors says nothing about
    the file. Taking it for damage would throw away what was trained.

    Args:
        read: Reads something; it may be called several times.
        path: What is read, for the message.

    Raises:
        OSError: If the file does not exist or is not a file.
        StoppedEarly: If the last attempt failed as well.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except OSError as error:
            if error.errno in _ABSENT:
                raise
            if pause is None:
                raise StoppedEarly(
                    f"{path} cannot be read ({words_of(error)}, {len(PAUSES) + 1} times); "
                    "bring its storage back and run the same command again to resume",
                    "storage",
                    agreed=True,
                ) from None
            words = words_of(error)
            _log.warning("%s cannot be read (%s); the next attempt comes in %g s", path, words, pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
