"""Process groups that start without a word on standard output, which belongs to results such as JSON."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def native_output_to_stderr() -> Generator[None]:
    """Send what native libraries print within the context to standard error.

    The gloo of torch 2.9 prints whom each process of a new group has reached.
    """
    if sys.__stdout__ is None:  # closed by the parent: descriptor 1 may be another file by now
        yield
        return

    buffers = ctypes.CDLL(None)
    sys.stdout.flush()
    buffers.fflush(None)
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        buffers.fflush(None)
        os.dup2(own, 1)
        os.close(own)
