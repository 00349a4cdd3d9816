"""Directories that appear whole or not at all: they get their name when they are complete."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from flipscale.errors import UserError
from flipscale.files import naming, sync_directory

_LOCK = ".lock"
"""The ending of the file next to an unfinished directory. Its living writer holds a lock on it."""


def check_new(path: Path, what: str) -> None:
    """Check that a directory can be made at `path`, before hours of work whose result goes into it.

    The check leaves nothing behind, no directory above `path` either: the work may be refused after it.

    Args:
        path: The directory, which may exist if it is empty.
        what: The option or argument that names it, for the message.

    Raises:
        UserError: If something is there, or the directory cannot be made.
    """
    missing: list[Path] = []
    try:
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{what}: {path} is not empty; name a new directory")
        missing += [above for above in path.absolute().parents if not above.exists()]
        with staged_directory(path):
            raise _Trial
    except _Trial:
        return
    except OSError as error:
        raise UserError(f"{what}: the directory {path} cannot be made: {error.strerror}") from None
    finally:
        with suppress(OSError):  # another process may have put something there meanwhile
            for above in missing:
                above.rmdir()


@contextmanager
def staged_directory(path: Path) -> Generator[Path]:
    """Give a new directory to write into, which gets the name `path` at the end of the context.

    If the context ends by an error, nothing is left. What a killed process left behind is removed by the next
    one that writes to the same path.

    Args:
        path: The directory, which does not exist or is empty.

    Yields:
        A directory next to it.

    Raises:
        OSError: If the directory cannot be written, or if something was put at `path` meanwhile.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)

    work = path.with_name(f".{path.name}.unfinished.{secrets.token_hex(4)}")
    lock = work.with_name(work.name + _LOCK)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):  # some shared file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        work.mkdir()
        yield work
        _sync(work)
        with naming(path):
            os.rename(work, path)
        sync_directory(path.parent)
    finally:
        _remove(work, lock)
        os.close(descriptor)


class _Trial(Exception):
    """Ends a staged directory that was only tried."""


def _remove_abandoned(path: Path) -> None:
    """Remove unfinished directories whose writers are gone; one without our lock file is somebody else's."""
    for lock in path.parent.glob(f".{_escaped(path.name)}.unfinished.*{_LOCK}"):
        with suppress(OSError):
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.with_name(lock.name.removesuffix(_LOCK)), lock)
            finally:
                os.close(descriptor)


def _remove(work: Path, lock: Path) -> None:
    """Remove an unfinished directory if it is still there, then its lock file."""
    shutil.rmtree(work, ignore_errors=True)
    # The lock file stays if the directory does: the next writer then tries again.
    if not os.path.lexists(work):
        with suppress(OSError):
            lock.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    """Return a name as a pattern that matches only the name itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync(directory: Path) -> None:
    """Return when all files of a directory are on disk."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with naming(Path(folder, name)):
                file = os.open(Path(folder, name), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)
        sync_directory(Path(folder))
