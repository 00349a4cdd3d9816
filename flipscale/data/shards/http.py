"""Shards on http and https servers, which are trusted with nothing: neither time, memory, nor redirects.

urllib3 is used instead of fsspec's own client. That client is asynchronous, and its event loop lives in a
thread that a forked loader worker lacks. It also checks neither the range nor the version of an answer.
"""

from __future__ import annotations

from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from flipscale.addresses import reference_names, without_secrets
from flipscale.data.shards.http_credentials import authorized, refusal
from flipscale.data.shards.remote import Status, changed, within
from flipscale.errors import UserError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_CONNECTIONS = 32  # kept open to one server
_REDIRECTS = 5


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
            retries=False,
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
        from urllib3.exceptions import HTTPError

        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        try:
            # Leaving the block closes the connection if anything is unread, so that nothing is read in vain.
            with self._answer(path, headers) as response:
                sent = "Authorization" in headers
                return _checked_range(path, response, offset, size, sent=sent)
        except (HTTPError, HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise OSError(without_secrets(reason)) from None

    def _answer(self, path: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Return the answer to a request, after redirects.

        Raises:
            OSError: If there are too many redirects, or one leads to what is not a web address.
            UserError: If the path itself is not a web address.
        """
        from urllib3.exceptions import LocationValueError

        try:
            address, authorization = authorized(path)
            headers |= authorization
            response = self._get(address, headers)
        except (LocationValueError, UnicodeError):
            raise _not_an_address(path) from None

        for _ in range(_REDIRECTS):
            location = response.get_redirect_location()
            if not location:
                return response

            # Not by urllib3, which reads the body of a redirect to its end, and logs where it leads.
            response.close()
            target = urljoin(address, location)
            if urlsplit(target).scheme not in ("http", "https") or not urlsplit(target).hostname:
                raise OSError("the server redirects to what is not a web address")
            if _origin(target) != _origin(address):
                headers.pop("Authorization", None)
            address = target
            response = self._get(address, headers)

        response.close()
        raise OSError(f"more than {_REDIRECTS} redirects")

    def _get(self, address: str, headers: dict[str, str]) -> BaseHTTPResponse:
        return self._pool.request("GET", address, headers=headers, preload_content=False, redirect=False)


def _not_an_address(path: str) -> UserError:
    """Return the error for a path that is not an address; the client's own quotes parts of passwords."""
    names = " and ".join(f"${{{name}}}" for name in sorted(reference_names(path)))
    fix = (
        f", with the value of {names}; write characters such as / and @ in it as %2F and %40" if names else ""
    )
    return UserError(without_secrets(path) + f" is not a web address{fix or '; correct it'}")


def _checked_range(
    path: str, response: BaseHTTPResponse, offset: int, size: int, *, sent: bool
) -> tuple[bytes, Status]:
    """Return the content of an answer and the status of its shard, if it is the range that was asked for."""
    names = sorted(reference_names(path))
    content_range = response.headers.get("Content-Range", "")
    total = content_range.rpartition("/")[2]

    if response.status == 401:
        raise refusal(path, sent=sent)
    if response.status == 404:
        raise FileNotFoundError("HTTP 404: not found")
    if response.status == 200:
        raise UserError(
            f"the server of {path} does not answer range requests (HTTP 200 instead of 206); "
            "copy the shards to storage that does"
        )
    if response.status not in (206, 416) or not total.isdecimal():
        expired = f"; is {names[0]} still valid?" if response.status == 403 and names else ""
        raise OSError(f"HTTP {response.status} {response.reason or ''}".strip() + expired)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"the server of {path} compresses the shard; copy it to storage that does not")

    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    status = Status(int(total), version)
    if response.status == 416:  # the shard ends before `offset`
        return b"", status

    data = _read_most(response, size + 1)
    if not content_range.startswith(f"bytes {offset}-") or len(data) != min(size, status.bytes - offset):
        raise OSError(f"the server answered with {len(data)} bytes as {content_range!r}")

    return data, status


def _read_most(response: BaseHTTPResponse, most: int) -> bytes:
    """Return the body as it was sent, or its first `most` bytes."""
    parts: list[bytes] = []
    while most and (part := response.read(most, decode_content=False)):
        parts.append(part)
        most -= len(part)

    return b"".join(parts)


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port
