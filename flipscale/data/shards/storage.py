"""The places of shards: local files, http(s), all that fsspec reaches (s3, gs, ...), output of commands."""

from __future__ import annotations

import io
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from flipscale.addresses import without_secrets
from flipscale.data.shards import remote
from flipscale.data.shards.http import Http
from flipscale.data.shards.range_file import RangeFile
from flipscale.data.shards.remote import Status
from flipscale.errors import StoppedEarly, words_of
from flipscale.files import open_regular

_OPEN_SHARDS = 64
_READ_AHEAD = 16 << 10  # bytes per request for headers; covers the small members between two images
T = TypeVar("T")


class DataReadError(StoppedEarly):
    """Shards could not be read, after retries. The segment ends, since skipping would change the order."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="data")


@dataclass(frozen=True)
class Patience:
    """The time limits of storage, in seconds."""

    pauses: tuple[float, ...] = (0.1, 0.5, 2.0, 8.0)  # before each further attempt
    attempt: float = 30.0  # one read from remote storage, from the request to the last byte
    command: float = 600.0  # one run of a command that writes a shard


class Place(Protocol):
    """One kind of storage. Both methods raise OSError if another attempt may succeed."""

    def status(self, path: str) -> Status:
        """Return size and version of a shard."""
        ...

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        """Return up to `size` bytes at `offset`; fewer at the end of the shard.

        Raises:
            UserError: If the answer shows that the shard is no longer the `known` one.
        """
        ...


def is_remote(path: str) -> bool:
    """Return whether a shard is not a file of this machine or its mounts."""
    return "://" in path or is_command(path)


def is_command(path: str) -> bool:
    """Return whether a shard is the output of a command."""
    return path.startswith("pipe:")


class Storage:
    """The reader of shards by their paths, with retries and time limits.

    A pickled copy, and a process after a fork, opens connections of its own.

    Args:
        allow_pipe: Names of the commands that `pipe:` shards may run.
        patience: Time limits.
    """

    def __init__(self, allow_pipe: tuple[str, ...] = (), patience: Patience = Patience()) -> None:
        self.allow_pipe = allow_pipe
        self.patience = patience
        self._local = _LocalFiles()
        self._remote: tuple[int, Http, remote.Filesystems] | None = None

    def __reduce__(self) -> tuple[type[Storage], tuple[tuple[str, ...], Patience]]:
        return Storage, (self.allow_pipe, self.patience)

    def status(self, path: str) -> Status:
        """Return size and version of a shard; for a command, this runs it.

        Raises:
            FileNotFoundError: If the shard does not exist.
            DataReadError: If the storage does not answer, after retries.
            UserError: If the command is not allowed.
        """
        if is_command(path):
            with self.open(path) as file:
                return Status(file.seek(0, os.SEEK_END), "")

        return self._retried(path, lambda: self._place(path).status(path), missing_passes=False)

    def read(self, path: str, offset: int, size: int, known: Status | None = None) -> bytes:
        """Return the bytes at `offset`; fewer than `size` only at the end of the shard.

        Args:
            path: Path or address of the shard.
            offset: First byte.
            size: Number of bytes.
            known: Status of the shard as indexed; remote storage compares it with what it finds.

        Raises:
            DataReadError: If the shard cannot be read, after retries.
            UserError: If the shard is no longer the `known` one.
        """
        if size == 0:
            return b""

        place = self._place(path)
        return self._retried(path, lambda: place.read(path, offset, size, known), missing_passes=True)

    def open(self, path: str) -> BinaryIO:
        """Open a shard for random access; a command's output is kept in a temporary file.

        Raises:
            DataReadError: If remote storage or the command fails, after retries.
            OSError: If a local file cannot be opened, or is a pipe or a device, which could block.
            UserError: If the command is not allowed.
        """
        if is_command(path):
            argv = remote.command(path, self.allow_pipe)
            limit = self.patience.command
            return self._retried(path, lambda: remote.run(argv, limit), missing_passes=True)
        if not is_remote(path):
            return open_regular(Path(path))

        size = self.status(path).bytes
        return io.BufferedReader(RangeFile(lambda at, count: self.read(path, at, count), size), _READ_AHEAD)

    def _place(self, path: str) -> Place:
        if not is_remote(path):
            return self._local

        if self._remote is None or self._remote[0] != os.getpid():  # connections do not survive a fork
            limit = self.patience.attempt
            self._remote = os.getpid(), Http(limit), remote.Filesystems(limit)

        _, http, filesystems = self._remote
        return http if path.startswith(("http://", "https://")) else filesystems

    def _retried(self, path: str, work: Callable[[], T], *, missing_passes: bool) -> T:
        """Call `work` until it raises no OSError; a mount may hide a shard for a short time."""
        for pause in (*self.patience.pauses, None):
            try:
                return work()
            except OSError as error:
                self._local.close(path)
                if isinstance(error, FileNotFoundError) and not missing_passes:
                    raise
                if pause is None:
                    raise DataReadError(
                        without_secrets(f"{path} cannot be read ({words_of(error)})")
                        + f" after {len(self.patience.pauses)} retries"
                    ) from None
                time.sleep(pause)
        raise AssertionError("unreachable")


class _LocalFiles:
    """Files of this machine and its mounts. The descriptors of the last used files stay open."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def status(self, path: str) -> Status:
        stat = os.stat(path)
        return Status(stat.st_size, str(stat.st_mtime_ns))

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._files) > _OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])

        self._files.move_to_end(path)
        return os.pread(self._files[path], size, offset)

    def close(self, path: str) -> None:
        descriptor = self._files.pop(path, None)
        if descriptor is not None:
            with suppress(OSError):  # a handle can be stale
                os.close(descriptor)
