"""Storage that is not a local file. Every request has a total time limit, whatever the other side does.

http(s) is read with urllib3 rather than with fsspec's own client: that one is asynchronous, its event loop
lives in a thread that a forked loader worker lacks, and it checks neither the range nor the version that the
server answers with.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NamedTuple, TypeVar

from flipscale.errors import UserError

T = TypeVar("T")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_CONNECTIONS = 32  # kept open to one server


class Status(NamedTuple):
    """What tells one content of a shard from another: modification time or ETag, "" where there is none."""

    bytes: int
    version: str


def changed(path: str) -> UserError:
    """The refusal of a shard that is not the one that the index was made of."""
    return UserError(f"{path} changed since the index was made; restore it, or make the index again")


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns or raise what it raises; TimeoutError after `seconds`, leaving it behind.

    A socket's own time limit starts anew with every byte, so that a server that drips would never reach it.
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
    """http and https, one range request a read; redirects are followed."""

    def __init__(self, limit: float) -> None:
        import urllib3

        self._limit = limit
        self._pool = urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            timeout=urllib3.Timeout(connect=min(limit, 10.0), read=limit),
            retries=urllib3.Retry(total=5, connect=0, read=0, status=0, other=0, raise_on_status=False),
        )

    def status(self, path: str) -> Status:
        # Not HEAD: addresses that are signed for one method are signed for GET.
        return within(self._limit, lambda: self._range(path, 0, 1))[1]

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        data, found = within(self._limit, lambda: self._range(path, offset, size))
        if known is not None and found != known:
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
            raise UserError(f"{path} is no web address ({error})") from None
        except urllib3.exceptions.HTTPError as error:
            raise OSError(f"{type(error).__name__}: {error}".split("\n")[0]) from None
        if not content_range.startswith(f"bytes {offset}-") or len(data) != min(size, status.bytes - offset):
            raise OSError(f"the server answered with {len(data)} bytes as {content_range!r}")
        return data, status


class Filesystems:
    """Everything that fsspec knows by the protocol of its address."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._known: dict[str, Status] = {}

    def status(self, path: str) -> Status:
        filesystem, name = _filesystem(path)
        found = self._call(lambda: filesystem.info(name))
        parts = (found.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "updated", "created"))
        version = next((str(part) for part in parts if part), "")
        return Status(int(found["size"]), version)

    def read(self, path: str, offset: int, size: int, known: Status | None) -> bytes:
        filesystem, name = _filesystem(path)
        if known is not None and self._known.get(path) != known:  # asked once a shard: it costs a request
            if self.status(path) != known:
                raise changed(path)
            self._known[path] = known
        return self._call(lambda: filesystem.cat_file(name, start=offset, end=offset + size))

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return within(self._limit, work)
        except OSError:
            raise
        except Exception as error:  # of whatever client the filesystem is built on
            raise OSError(f"{type(error).__name__}: {error}".split("\n")[0]) from None


def _filesystem(path: str) -> tuple[Any, str]:
    """The filesystem of an address; fsspec keeps one for each process, and starts anew after a fork."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(path, use_listings_cache=False)
    except ImportError:
        protocol = path.partition("://")[0]
        package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}://")
        raise UserError(f"{path} needs a package that is missing; `pip install {package}`") from None
    except ValueError as error:
        raise UserError(f"{path} lies in no storage that is known ({error})") from None


def command(path: str, allowed: tuple[str, ...]) -> list[str]:
    """The arguments of a `pipe:` shard's command. Raises UserError unless the job allows it by name."""
    try:
        argv = shlex.split(path.removeprefix("pipe:"))
    except ValueError as error:
        raise UserError(f"the shard {path!r} is no command ({error})") from None
    if not argv or argv[0] not in allowed:
        name = argv[0] if argv else ""
        raise UserError(
            f"the shard {path!r} would run the command {name!r}, which is not allowed; "
            "name it in data.allow_pipe (or --allow-pipe) if you trust it"
        )
    return argv


def run(argv: list[str], seconds: float) -> BinaryIO:
    """Run a command without a shell; return what it wrote to stdout as a temporary file.

    Raises OSError where it cannot be started, fails or takes longer than `seconds`.
    """
    with ExitStack() as held:
        output = held.enter_context(tempfile.TemporaryFile())
        # A file rather than a pipe, which grandchildren could keep open beyond the time limit.
        errors = held.enter_context(tempfile.TemporaryFile())
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{argv[0]} took longer than {seconds:g} s") from None
        if done.returncode:
            errors.seek(0)
            said = errors.read(10_000).decode(errors="replace").strip().splitlines() or [""]
            raise OSError(f"{argv[0]} ended with exit code {done.returncode}: {said[-1][:200]}")
        held.pop_all()
        errors.close()
        output.seek(0)
        return output
