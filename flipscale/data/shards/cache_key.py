"""Taking a directory as a cache: it is empty or one already, and has a secret key of the user."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from flipscale.data.shards.cache_blocks import holds_blocks
from flipscale.errors import UserError

_PREFIX = ".flipscale-cache."  # before the number of the user
_KEY = 32  # bytes
_log = logging.getLogger(__name__)


def prepare_cache(directory: Path) -> bytes:
    """Make the directory of a cache if it is missing, and return the user's key, which is its marker.

    Raises:
        OSError: If the key cannot be written.
        UserError: If the directory cannot be made, holds other files only, or the key is not the user's own.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = os.listdir(directory)
    except OSError as error:
        raise UserError(
            f"data.cache.directory {directory} cannot be made ({error.strerror}); name another one"
        ) from None

    marked = any(name.startswith(_PREFIX) for name in names)
    if names and not marked and not holds_blocks(directory):
        raise UserError(
            f"data.cache.directory {directory} holds other files ({sorted(names)[0]!r}); name an empty "
            f"directory, such as {directory / 'flipscale'}"
        )

    path = directory / f"{_PREFIX}{os.geteuid()}"
    if path.name not in names:
        with suppress(FileExistsError):  # another process was faster
            _write_key(path)

    return _read_key(path)


def warn_of_strangers(directory: Path) -> None:
    """Warn if everybody can write to the directory. Blocks of others are not believed, but can be deleted."""
    if directory.stat().st_mode & stat.S_IWOTH:
        _log.warning(
            "data.cache.directory %s can be written by everybody; take that right away with `chmod o-w`",
            directory,
        )


def _write_key(path: Path) -> None:
    """Write a new key, whole or not at all.

    Raises:
        FileExistsError: If there is a key.
        OSError: If it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(_KEY))
        os.link(partial, path)
    finally:
        os.close(descriptor)
        partial.unlink()


def _read_key(path: Path) -> bytes:
    """Return the key.

    Raises:
        OSError: If it cannot be read.
        UserError: If others could have written or read it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        own = status.st_uid == os.geteuid() or os.geteuid() == 0
        if own and stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and status.st_size == _KEY:
            return os.read(descriptor, _KEY)
    finally:
        os.close(descriptor)

    raise UserError(
        f"{path} is not a key that only you can read; remove it, and the next start makes another"
    )
