"""Storage that is not a local file. Every request has a total time limit, whatever the server does."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from flipscale.addresses import resolve, without_secrets
from flipscale.errors import UserError

T = TypeVar("T")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Status(NamedTuple):
    """The size and version of a shard, which change if its content changes."""

    bytes: int
    version: str  # modification time or ETag; "" if the storage has neither


def changed(path: str) -> UserError:
    """Return the error for a shard that is not the one that was indexed."""
    return UserError(f"{path} changed since the index was made; restore it, or make the index again")


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns, or raise what it raises, within a time limit.

    A socket's own time limit starts again with every byte, so a server that drips never reaches it. After the
    limit, the thread that does the work is abandoned.

    Raises:
        TimeoutError: If the work takes longer than `seconds`.
    """
    outcome: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((True, work()))
        except BaseException as error:
            outcome.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        done, result = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no complete answer within {seconds:g} s") from None

    if not done:
        raise result

    return result


class Filesystems:
    """Shards in the storage that fsspec knows by the protocol of an address.

    Args:
        limit: Time limit of a request, in seconds.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._known: dict[str, Status] = {}

    def status(self, path: str) -> Status:
        """Return size and version of a shard; see `Place`."""
        filesystem, name = _filesystem(path)
        info = self._call(lambda: filesystem.info(name))
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise OSError(f"the storage gives the shard a size of {size!r}")

        parts = (info.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "updated", "created"))
        version = next((str(part) for part in parts if part), "")
        return Status(size, version)

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        """Return up to `size` bytes at `offset`; see `Place`."""
        filesystem, name = _filesystem(path)

        # Compare only once per shard, since it costs a request.
        if known is not None and self._known.get(path) != known:
            if self.status(path) != known:
                raise changed(path)
            self._known[path] = known

        data = self._call(lambda: filesystem.cat_file(name, start=offset, end=offset + size))
        if len(data) > size:
            raise OSError(f"the storage answered with {len(data)} bytes instead of {size}")

        return data

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return within(self._limit, work)
        except OSError:
            raise
        except Exception as error:  # each filesystem has a client with errors of its own
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise OSError(without_secrets(reason)) from None


def _filesystem(path: str) -> tuple[Any, str]:
    """Return the filesystem of an address, and the name in it.

    fsspec keeps one filesystem per process, and makes another one after a fork.
    """
    import fsspec

    try:
        open_url = cast(
            "Callable[..., tuple[Any, str]]",
            fsspec.core.url_to_fs,
        )
        return open_url(resolve(path), use_listings_cache=False)
    except ImportError:
        protocol = path.partition("://")[0]
        package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}://")
        raise UserError(f"{path} needs a package that is missing; `pip install {package}`") from None
    except ValueError as error:
        raise UserError(f"the storage of {path} is not known ({error}); correct the address") from None


def command(path: str, allowed: tuple[str, ...]) -> list[str]:
    """Return the arguments of a `pipe:` shard's command.

    Args:
        path: The shard, from `pipe:` on.
        allowed: Names of the commands that may run.

    Raises:
        UserError: If it is not a command, its name is not among those allowed, or a variable is missing.
    """
    try:
        argv = shlex.split(path.removeprefix("pipe:"))
    except ValueError as error:
        raise UserError(f"the shard {path!r} is not a command ({error}); correct its quotes") from None

    if not argv or argv[0] not in allowed:
        name = argv[0] if argv else ""
        raise UserError(
            f"the shard {path!r} would run the command {name!r}, which is not allowed; "
            "name it in data.allow_pipe (or --allow-pipe) if you trust it"
        )

    # Resolve after splitting: a value is part of one argument, whatever is in it.
    return [resolve(word) for word in argv]


def run(argv: list[str], seconds: float) -> BinaryIO:
    """Run a command without a shell, and return its standard output as a temporary file.

    Raises:
        OSError: If the command cannot be started, fails or takes longer than `seconds`.
    """
    with ExitStack() as files:
        output = files.enter_context(tempfile.TemporaryFile())
        # Not a pipe, which grandchildren could keep open beyond the time limit.
        errors = files.enter_context(tempfile.TemporaryFile())

        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{argv[0]} took longer than {seconds:g} s") from None

        if done.returncode:
            errors.seek(0)
            lines = errors.read(10_000).decode(errors="replace").strip().splitlines() or [""]
            raise OSError(f"{argv[0]} ended with exit code {done.returncode}: {lines[-1][:200]}")

        files.pop_all()  # keeps the output open
        errors.close()
        output.seek(0)
        return output
