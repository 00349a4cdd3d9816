"""Commands whose file system fails, or kills them, at a chosen step: a real error of a real call.

A library that is preloaded into the process (storage_faults.c) stands between it and the C library, as disks
that fail at a chosen call cannot be had without root.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.broken_files import Outcome, flipscale
from support.warm_start import WarmPopen

SOURCE = Path(__file__).with_name("storage_faults.c")
KILL = 0
KINDS = (KILL, errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
"""SIGKILL before the step, and four errors."""


@dataclass(frozen=True)
class Fault:
    """What happens at one step; disks that are full or read-only stay so."""

    step: int
    kind: int

    @property
    def environment(self) -> dict[str, str]:
        chosen = {"FAULT_STEP": str(self.step), "FAULT_KIND": str(self.kind)}
        return chosen if self.kind in (KILL, errno.EIO) else chosen | {"FAULT_LASTING": "1"}

    def __str__(self) -> str:
        return f"{errno.errorcode.get(self.kind, 'kill')} at step {self.step}"


@contextmanager
def faulty_storage(directory: Path) -> Generator[None]:
    """Preload the library into all commands that are started inside; skips the test without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("the library that makes calls fail needs a C compiler")
    library = directory / "storage_faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setattr(WarmPopen, "server", None)  # one that has the library
        yield


def steps_of(root: Path, log: Path, *arguments: object) -> list[str]:
    """Run a command without a fault; return its steps below `root`: operation and relative path."""
    log.unlink(missing_ok=True)
    outcome = flipscale(*arguments, environment={"FAULT_ROOT": str(root), "FAULT_LOG": str(log)})
    assert outcome.code == 0, outcome.errors
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split(" ", 1)[1].replace(f"{root}/", "") for line in lines]


def run_with(fault: Fault, root: Path, *arguments: object) -> Outcome:
    """Run a command whose step below `root` fails."""
    return flipscale(*arguments, environment={"FAULT_ROOT": str(root), **fault.environment})
