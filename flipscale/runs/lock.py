"""The lock of a run: one process at a time trains in it, and a start left on a lost node loses it."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from flipscale.child_process import kept_from_children
from flipscale.errors import RunError, UserError
from flipscale.files import naming, read_regular
from flipscale.runs.directory import RunDirectory, check_not_foreign

_SECONDS_TO_END = 60.0
"""Seconds that a process of an older start has to end and release the run."""
_log = logging.getLogger(__name__)


class RunLock:
    """The right of one process to write into a run; the lock file names its owner."""

    def __init__(self, run: RunDirectory, descriptor: int, owner: str) -> None:
        """Write the owner's name into the locked file.

        Args:
            run: The run.
            descriptor: The open lock file.
            owner: The name of this start.
        """
        self._path = run.lock
        self._owner = owner

        with naming(run.lock):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)

    def check(self) -> None:
        """Check that this start still owns the run.

        Raises:
            RunError: If a newer start has taken over the run: this one must not write any more.
        """
        if (owner := self._current_owner()) != self._owner:
            raise RunError(f"the run belongs to {owner} now, not to {self._owner}", kind="superseded")

    @property
    def held(self) -> bool:
        """Whether this start still owns the run, as far as the file can be read."""
        try:
            return self._current_owner() == self._owner
        except OSError:
            return False

    def _current_owner(self) -> str:
        try:
            return read_regular(self._path).decode(errors="replace")
        except (FileNotFoundError, IsADirectoryError):
            return "nobody"


@contextmanager
def lock_run(
    run: RunDirectory, owner: str = "", may_follow: Callable[[str], bool] = str.isspace
) -> Generator[RunLock, None, None]:
    """Lock the run for this process.

    Args:
        run: The run; its directory is created if it does not exist.
        owner: The name of this start; default: host and process.
        may_follow: Whether the start of a name is known to have ended or to be fenced off. Such a start owns
            the run only because one of its processes was left behind. It gets a minute to end and then loses
            the run.

    Yields:
        The lock, which is released at the end of the context.

    Raises:
        UserError: If another process trains in the run, or the directory holds something else or cannot be
            written.
    """
    check_not_foreign(run)
    descriptor = _acquire(run, may_follow)
    try:
        # A loader worker that outlives this process must not hold the lock.
        with kept_from_children(descriptor):
            yield RunLock(run, descriptor, owner or f"{socket.gethostname()}.{os.getpid()}")
    finally:
        os.close(descriptor)


def _acquire(run: RunDirectory, may_follow: Callable[[str], bool]) -> int:
    """Return the descriptor of the locked file."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while True:
        descriptor = _open(run)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            owner = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
        except OSError as error:
            # Some shared file systems have no locks; the name written in the file still fences.
            _log.warning("%s cannot be locked (%s)", run.lock, error.strerror)
            return descriptor

        if not may_follow(owner):
            raise UserError(
                f"another process is training in {run.path} ({owner or 'nobody knows which'}); "
                "stop it, or set another `output`"
            )
        if time.monotonic() > deadline:
            # The next turn locks a new file; the process that was left behind keeps the old one.
            _log.warning("taking %s over from %s, which was left behind", run.path, owner)
            run.lock.unlink(missing_ok=True)
        else:
            time.sleep(1.0)


def _open(run: RunDirectory) -> int:
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"the run directory {run.path} cannot be written ({error.strerror}); set another `output`"
        ) from None

    # A pipe can be opened and locked, but nobody's name can be written into it.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{run.lock} is not a regular file; remove it, and run the same command again")
    return descriptor
