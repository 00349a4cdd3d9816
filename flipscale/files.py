"""Files that are read and written as a whole, and the check that a file can be written at all."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flipscale.errors import UserError

_STORAGE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EREMOTEIO, errno.ESTALE),
    *(errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
}
"""What a file system says for reasons of its own; another error is more likely one of this package."""


def storage_problem(error: BaseException) -> str | None:
    """Return a sentence about an error of the file system; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _STORAGE:
        return None

    if error.errno == errno.EMFILE:
        return f"{too_many_files()} and run the same command again"
    where = error.filename2 or error.filename or "a file"
    return (
        f"{where} cannot be read or written ({os.strerror(error.errno)}); fix the cause and run the same "
        "command again"
    )


def too_many_files() -> str:
    """Return a sentence about the limit of open files, which this process has reached."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"a process may open no more than {limit} files here; raise the limit (`ulimit -n`)"


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Give an error of the file system the name of its file, which failed writes do not have."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def check_writable(path: Path, what: str = "--out") -> None:
    """Check that a file can be written, before hours of work whose result goes into it.

    The directory of the file is made. The content of the file stays as it is; a new file is removed again.

    Args:
        path: The file.
        what: The option or argument that names it, for the message.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        # If a file is in the place of the directory, `open` reports it more clearly than `mkdir`.
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)

        new = not os.path.lexists(path)
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another {what}") from None


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. A pipe or a device in its place, which could block, is refused.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        IsADirectoryError: If anything else than a regular file is there; the message says so.
        OSError: If the file cannot be read.
    """
    # Without O_NONBLOCK the call would wait for a writer of a pipe.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a name from a damaged file, with a NUL or half of a character
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ascii(str(path))) from error

    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is not a regular file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: As `open_regular` does.
    """
    with open_regular(path) as file:
        return file.read()


def set_aside(path: Path) -> Path:
    """Rename what is damaged, so that a person can look at it, and return the new path.

    Raises:
        OSError: If the directory cannot be written.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged{number}")):
        number += 1
    os.rename(path, aside)
    return aside


def overwrite(path: Path, text: str) -> None:
    """Replace the content of a file without new space: a full disk has no room for a second copy.

    A crash in the middle can leave both contents mixed. The file must be at least as long as the text, or its
    last block have the room.

    Raises:
        OSError: If the file does not exist or cannot be written.
    """
    with open(path, "r+", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        file.truncate()
        os.fsync(file.fileno())


def write_durably(path: Path, text: str) -> None:
    """Replace a file so that after a crash it has either its old or its new content.

    The new content is on disk when the function returns.

    Args:
        path: The file.
        text: The new content, which is encoded as UTF-8.
    """
    partial = path.with_name(path.name + ".partial")
    with naming(path):
        try:
            with open(partial, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise

        # The directory holds the new name only once it is synchronised, too.
        sync_directory(path.parent)


def write_output(path: Path, text: str) -> None:
    """Write a file that a user named: a link stays, and a device or a pipe takes the text itself.

    Args:
        path: The file, such as `scores.json` or `/dev/stdout`.
        text: Its new content; see `write_durably`.
    """
    target = Path(os.path.realpath(path))
    if not target.exists() or target.is_file():
        write_durably(target, text)
        return

    with naming(path), open(path, "w", encoding="utf-8") as file:
        file.write(text)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on disk.

    Raises:
        OSError: If the directory cannot be synchronised.
    """
    with naming(path):
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
