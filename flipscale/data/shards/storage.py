"""Where shards lie: local files, http(s), what fsspec reaches (s3, gs, ...) and the output of commands."""

from __future__ import annotations

import io
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar

from flipscale.data.shards import remote
from flipscale.data.shards.remote import Status
from flipscale.errors import StoppedEarly

_OPEN_SHARDS = 64
_READ_AHEAD = 16 << 10  # bytes of one request for headers: more than the small members between two images
T = TypeVar("T")


class DataReadError(StoppedEarly):
    """Shards could not be read, after retries; the segment ends so that the sample order stays."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="data")


@dataclass(frozen=True)
class Patience:
    """How long to wait for storage; all in seconds."""

    pauses: tuple[float, ...] = (0.1, 0.5, 2.0, 8.0)  # before each further attempt
    attempt: float = 30.0  # one read from remote storage, from the request to the last byte
    command: float = 600.0  # one run of a command that writes a shard


class Place(Protocol):
    """One kind of storage. Both methods raise OSError where another attempt may succeed."""

    def status(self, path: str) -> Status: ...

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        """Return up to `size` bytes at `offset`; fewer at the end of the shard.

        Raises UserError where the shard is seen not to be the `known` one any more.
        """
        ...


def is_remote(path: str) -> bool:
    return "://" in path or is_command(path)


def is_command(path: str) -> bool:
    return path.startswith("pipe:")


class Storage:
    """Reads shards by their paths, with retries and time limits; every process has its own connections.

    Args:
        allow_pipe: names of the commands that `pipe:` shards may run.
    """

    def __init__(self, allow_pipe: tuple[str, ...] = (), patience: Patience = Patience()) -> None:
        self.allow_pipe = allow_pipe
        self.patience = patience
        self._local = _LocalFiles()
        self._remote: tuple[int, remote.Http, remote.Filesystems] | None = None

    def __reduce__(self) -> tuple[type[Storage], tuple[tuple[str, ...], Patience]]:
        return Storage, (self.allow_pipe, self.patience)

    def status(self, path: str) -> Status:
        """Return size and version. Raises FileNotFoundError, DataReadError after retries."""
        if is_command(path):
            with self.open(path) as file:
                return Status(file.seek(0, os.SEEK_END), "")
        return self._retried(path, lambda: self._place(path).status(path), missing_passes=False)

    def read(self, path: str, offset: int, size: int, known: Status | None = None) -> bytes:
        """Return the bytes at `offset`; fewer than `size` only where the shard ends.

        Raises DataReadError after retries, UserError where the shard is not the `known` one any more.
        """
        if size == 0:
            return b""
        place = self._place(path)
        return self._retried(path, lambda: place.read(path, offset, size, known), missing_passes=True)

    def open(self, path: str) -> BinaryIO:
        """Open a shard for reading anywhere in it; a command's output is held in a temporary file."""
        if is_command(path):
            argv = remote.command(path, self.allow_pipe)
            limit = self.patience.command
            return self._retried(path, lambda: remote.run(argv, limit), missing_passes=True)
        if not is_remote(path):
            return open(path, "rb")
        size = self.status(path).bytes
        return io.BufferedReader(_Ranges(lambda at, count: self.read(path, at, count), size), _READ_AHEAD)

    def _place(self, path: str) -> Place:
        if not is_remote(path):
            return self._local
        if self._remote is None or self._remote[0] != os.getpid():  # connections do not survive a fork
            limit = self.patience.attempt
            self._remote = os.getpid(), remote.Http(limit), remote.Filesystems(limit)
        _, http, filesystems = self._remote
        return http if path.startswith(("http://", "https://")) else filesystems

    def _retried(self, path: str, work: Callable[[], T], *, missing_passes: bool) -> T:
        """Do `work` until it raises no OSError; that a shard is missing may be a passing state of a mount."""
        for pause in (*self.patience.pauses, None):
            try:
                return work()
            except OSError as error:
                self._local.close(path)
                if isinstance(error, FileNotFoundError) and not missing_passes:
                    raise
                if pause is None:
                    raise DataReadError(
                        f"{path} cannot be read ({error}) after {len(self.patience.pauses)} retries"
                    ) from None
                time.sleep(pause)
        raise AssertionError("unreachable")


class _LocalFiles:
    """Files of this machine and its mounts; keeps the descriptors of the last used ones."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def status(self, path: str) -> Status:
        found = os.stat(path)
        return Status(found.st_size, str(found.st_mtime_ns))

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
            with suppress(OSError):  # of a handle that went stale
                os.close(descriptor)


class _Ranges(io.RawIOBase):
    """A shard in remote storage as a file that can be read anywhere."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._read(self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
