"""What is made once per run of pytest, and shared by the processes that run its tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(name: str, make: Callable[[Path], None], factory: pytest.TempPathFactory) -> Path:
    """Return a directory that `make` fills; the first process that asks makes it, the others wait for it.

    Args:
        name: Name of the directory, unique within the run.
        make: Writes to the path that it gets, which does not exist yet.
        factory: Knows the temporary directory of this process; that of the run is one above it under xdist.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    shared = base / "shared"
    shared.mkdir(exist_ok=True)

    # Written under another name first: a process that is killed leaves nothing that looks complete.
    finished = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not finished.exists():
            unfinished = shared / f"{name}.unfinished.{os.getpid()}"
            make(unfinished)
            unfinished.rename(finished)
    return finished
