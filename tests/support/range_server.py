"""A web server on 127.0.0.1 that serves byte ranges of files, and can fail in every way that servers do."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("error", "cut", "wrong", "stall", "drip", "slow header")


class RangeServer(ThreadingHTTPServer):
    """A server of the files in `root`.

    If `fault_every` is n > 0, every n-th request fails, with each of `faults` in turn. `guard` sees the path
    and the headers of every request, and returns another status than 200 for one that it refuses.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.fault_every = 0
        self.faults: tuple[str, ...] = FAULTS
        self.ranges = True
        self.salt = ""  # changes every ETag
        self.sent = 0  # bytes of content
        self.injected: Counter[str] = Counter()
        self.requests = 0
        self.guard: Callable[[str, Mapping[str, str]], int] = lambda path, headers: 200
        self.over = threading.Event()
        self.counting = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self) -> str | None:
        with self.counting:
            self.requests += 1
            if not self.fault_every or self.requests % self.fault_every:
                return None
            fault = self.faults[self.requests // self.fault_every % len(self.faults)]
            self.injected[fault] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients that disconnect are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and content are two writes
    server: RangeServer  # pyrefly: ignore[bad-override-mutable-attribute]: it serves no other

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fault = self.server.next_fault()
        status = self.server.guard(self.path, dict(self.headers))
        if status != 200:
            return self._answer(status, b"", {})
        path = self.server.root / self.path.lstrip("/").partition("?")[0]
        if fault == "error":
            return self._answer(503, b"", {})
        if not path.is_file():
            return self._answer(404, b"", {})
        data = path.read_bytes()
        tag = hashlib.sha256(data + self.server.salt.encode()).hexdigest()[:16]
        headers = {"ETag": f'"{tag}"'}
        if not self.server.ranges:
            return self._answer(200, data, headers)
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        if first >= len(data):
            return self._answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        part = data[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        with self.server.counting:
            self.server.sent += len(part)
        return self._answer(206, part, headers, fault)

    def _answer(self, status: int, content: bytes, headers: dict[str, str], fault: str | None = None) -> None:
        if fault == "slow header":
            self.wfile.write(b"HTTP/1.1 206 OK\r\n")
            return self._drip(b"X-Slow: " + b"x" * 60_000)
        if fault == "wrong":
            headers["Content-Range"] = "bytes 7-8/" + headers["Content-Range"].rpartition("/")[2]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "stall":
            self.server.over.wait(60)
        elif fault == "drip":
            self._drip(content)
        else:
            self.wfile.write(content)

    def _drip(self, content: bytes) -> None:
        """Send one byte at a time, so often that no time limit between two bytes is reached."""
        for start in range(len(content)):
            self.wfile.write(content[start : start + 1])
            self.wfile.flush()
            if self.server.over.wait(0.05):
                break


@contextmanager
def serving(root: Path) -> Generator[RangeServer]:
    server = RangeServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
