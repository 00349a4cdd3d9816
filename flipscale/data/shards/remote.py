"""Storage that is not a local file. Every request has a total time limit, whatever the server does.

http(s) is read with urllib3 instead of fsspec's own client. That client is asynchronous, and its event loop
lives in a thread that a forked loader worker lacks. It also checks neither the range nor the version of an
answer.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from flipscale.errors import UserError

T = TypeVar("T")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_CONNECTIONS = 32  # kept open to one server


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


class Http:
    """Shards on http and https servers: one range request per read; redirects are followed.

    Args:
        limit: Time limit of a request, in seconds.
    """

    def __init__(self, limit: float) -> None:
        import urllib3

        self._limit = limit
        self._pool = urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            timeout=urllib3.Timeout(connect=min(limit, 10.0), read=limit),
            retries=urllib3.Retry(total=5, connect=0, read=0, status=0, other=0, raise_on_status=False),
        )

    def status(self, path: str) -> Status:
        """Return size and version of a shard; see `Place`."""
        # Not HEAD: an address that is signed for a single method is signed for GET.
        return within(self._limit, lambda: self._range(path, 0, 1))[1]

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        """Return up to `size` bytes at `offset`; see `Place`."""
        data, status = within(self._limit, lambda: self._range(path, offset, size))
        if known is not None and status != known:
            raise changed(path)

        return data

    def _range(self, path: str, offset: int, size: int) -> tuple[bytes, Status]:
        import urllib3

        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        try:
            with self._pool.request("GET", path, headers=headers, preload_content=False) as response:
                content_range = response.headers.get("Content-Range", "")
                total = content_range.rpartition("/")[2]

                if response.status == 404:
                    raise FileNotFoundError("HTTP 404: not found")
                if response.status == 200:
                    raise UserError(
                        f"the server of {path} does not answer range requests (HTTP 200 instead of 206); "
                        "copy the shards to storage that does"
                    )
                if response.status not in (206, 416) or not total.isdecimal():
                    raise OSError(f"HTTP {response.status} {response.reason or ''}".strip())

                version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                status = Status(int(total), version)
                if response.status == 416:  # the shard ends before `offset`
                    return b"", status

                data = response.read()
        except urllib3.exceptions.LocationValueError as error:
            raise UserError(f"{path} is not a web address ({error})") from None
        except urllib3.exceptions.HTTPError as error:
            raise OSError(f"{type(error).__name__}: {error}".split("\n")[0]) from None

        if not content_range.startswith(f"bytes {offset}-") or len(data) != min(size, status.bytes - offset):
            raise OSError(f"the server answered with {len(data)} bytes as {content_range!r}")

        return data, status


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

        parts = (info.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "updated", "created"))
        version = next((str(part) for part in parts if part), "")
        return Status(int(info["size"]), version)

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        """Return up to `size` bytes at `offset`; see `Place`."""
        filesystem, name = _filesystem(path)

        # Compare only once per shard, since it costs a request.
        if known is not None and self._known.get(path) != known:
            if self.status(path) != known:
                raise changed(path)
            self._known[path] = known

        return self._call(lambda: filesystem.cat_file(name, start=offset, end=offset + size))

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return within(self._limit, work)
        except OSError:
            raise
        except Exception as error:  # each filesystem has a client with errors of its own
            raise OSError(f"{type(error).__name__}: {error}".split("\n")[0]) from None


def _filesystem(path: str) -> tuple[Any, str]:
    """Return the filesystem of an address, and the name in it.

    fsspec keeps one filesystem per process, and makes another one after a fork.
    """
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    try:
        open_url = cast(
            "Callable[..., tuple[Any, str]]",
            fsspec.core.url_to_fs,  # pyright: ignore[reportUnknownMemberType]
        )
        return open_url(path, use_listings_cache=False)
    except ImportError:
        protocol = path.partition("://")[0]
        package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}://")
        raise UserError(f"{path} needs a package that is missing; `pip install {package}`") from None
    except ValueError as error:
        raise UserError(f"the storage of {path} is not known ({error})") from None


def command(path: str, allowed: tuple[str, ...]) -> list[str]:
    """Return the arguments of a `pipe:` shard's command.

    Args:
        path: The shard, from `pipe:` on.
        allowed: Names of the commands that may run.

    Raises:
        UserError: If it is not a command, or its name is not among those allowed.
    """
    try:
        argv = shlex.split(path.removeprefix("pipe:"))
    except ValueError as error:
        raise UserError(f"the shard {path!r} is not a command ({error})") from None

    if not argv or argv[0] not in allowed:
        name = argv[0] if argv else ""
        raise UserError(
            f"the shard {path!r} would run the command {name!r}, which is not allowed; "
            "name it in data.allow_pipe (or --allow-pipe) if you trust it"
        )

    return argv


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
