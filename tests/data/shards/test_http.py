"""Web servers that are hostile or want credentials: bounded memory and time, and no secret in any message."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.range_server import serving
from support.readers import hasty
from support.shards import write_shards

from flipscale.addresses import without_secrets
from flipscale.data.shards.http_credentials import TOKEN
from flipscale.data.shards.storage import DataReadError
from flipscale.errors import UserError

MIB = 1 << 20
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """A server whose next answers are given by functions; the headers of all requests are kept."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: the clients close early."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyrefly: ignore[bad-override-mutable-attribute]: it serves no other

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.answers[path](self)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def head(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def endless(status: int, **headers: str) -> Answer:
    """Return an answer whose body does not end while anybody reads."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        head(handler, status, **headers)
        server = handler.server
        assert isinstance(server, Server)
        while True:
            handler.wfile.write(b"x" * MIB)
            server.sent += MIB

    return answer


def whole(content: bytes) -> Answer:
    """Return the answer of a good server to a request for ten bytes at 0."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        head(handler, 206, Content_Range=f"bytes 0-9/{len(content)}", Content_Length="10", ETag="a")
        handler.wfile.write(content[:10])

    return answer


RANGE = "bytes 0-9/100"
ENDLESS = {
    "body": endless(206, Content_Range=RANGE),
    "declared body": endless(206, Content_Range=RANGE, Content_Length=str(1 << 60)),
    "whole file": endless(200),
    "error page": endless(503),
    "redirect": endless(302, Location="/good"),
    "not found": endless(404),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_answers_are_read_as_far_as_was_asked(server, kind):
    server.answers["/x"] = ENDLESS[kind]
    server.answers["/good"] = whole(bytes(range(100)))
    tracemalloc.start()
    try:
        data = hasty().read(f"{server.address}/x", 0, 10)
    except (DataReadError, UserError, FileNotFoundError):
        assert kind != "redirect"
    else:
        assert kind == "redirect"
        assert data == bytes(range(10))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 * MIB  # the server's own buffers are in it


def test_a_compressed_answer_is_not_unpacked(server):
    bomb = gzip.compress(bytes(200 * MIB), 1)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        head(handler, 206, Content_Range=RANGE, Content_Encoding="gzip", Content_Length=str(len(bomb)))
        handler.wfile.write(bomb)

    server.answers["/x"] = answer
    tracemalloc.start()
    with pytest.raises(UserError, match="compresses the shard; copy it to storage that does not"):
        hasty().read(f"{server.address}/x", 0, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MIB


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "http://" + "a" * 70 + ".com/",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "http:///x",
        "http://h:99999999/",
        "\x7f",
        "http://h/\x00",
        "//",
    ],
)
def test_a_redirect_to_nonsense_ends_the_segment(server, location):
    server.answers["/x"] = lambda handler: head(handler, 302, Location=location, Content_Length="0")
    server.answers["/\x7f"] = server.answers["/%7F"] = lambda handler: head(handler, 500, Content_Length="0")
    with pytest.raises(DataReadError, match=r"/x cannot be read") as stop:
        hasty().read(f"{server.address}/x", 0, 10)
    assert "\n" not in str(stop.value)


def test_redirects_are_counted(server):
    server.answers["/x"] = lambda handler: head(handler, 307, Location="/x?y=1", Content_Length="0")
    with pytest.raises(DataReadError, match="more than 5 redirects"):
        hasty().read(f"{server.address}/x", 0, 10)


@pytest.mark.parametrize("total", ["9" * 5000, "*", "-1", "1_0", ""])
def test_absurd_totals_end_the_segment(server, total):
    server.answers["/x"] = lambda handler: head(
        handler, 206, Content_Range=f"bytes 0-9/{total}", Content_Length="0"
    )
    with pytest.raises(DataReadError, match="cannot be read"):
        hasty().read(f"{server.address}/x", 0, 10)


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://", "http://" + "a" * 70 + ".com/x", "https://h:1234567/"]
)
def test_paths_that_are_not_web_addresses_are_refused(address):
    with pytest.raises(UserError, match="is not a web address"):
        hasty().read(address, 0, 10)


def test_credentials_are_sent_to_their_own_server_only(server, monkeypatch):
    other = Server()
    threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    other.answers["/good"] = whole(bytes(100))
    server.answers["/away"] = lambda handler: head(
        handler, 302, Location=f"{other.address}/good", Content_Length="0"
    )

    def guarded(handler: BaseHTTPRequestHandler) -> None:
        if "Authorization" in handler.headers:
            whole(bytes(100))(handler)
        else:
            head(handler, 401, Content_Length="0")

    server.answers["/x"] = guarded
    with pytest.raises(UserError, match=f"asks for credentials .HTTP 401.; .* or a token into {TOKEN}"):
        hasty().read(f"{server.address}/x", 0, 10)
    host = server.address.removeprefix("http://")
    assert hasty().read(f"http://ada:lovelace@{host}/x", 0, 10) == bytes(10)
    assert server.seen[-1][1]["Authorization"] == "Basic YWRhOmxvdmVsYWNl"
    assert hasty().read(f"http://ada:lovelace@{host}/away", 0, 10) == bytes(10)
    assert "Authorization" in server.seen[-1][1]
    assert "Authorization" not in other.seen[-1][1]

    monkeypatch.setenv(TOKEN, "sesame")
    assert hasty().read(f"{server.address}/x", 0, 10) == bytes(10)
    assert server.seen[-1][1]["Authorization"] == "Bearer sesame"
    assert hasty().read(f"{server.address}/away", 0, 10) == bytes(10)
    assert "Authorization" not in other.seen[-1][1]
    server.answers["/x"] = lambda handler: head(handler, 401, Content_Length="0")
    with pytest.raises(UserError, match="refuses the credentials that it was sent"):
        hasty().read(f"{server.address}/x", 0, 10)
    monkeypatch.setenv(TOKEN, "ses\x07ame")
    with pytest.raises(UserError, match="has characters that no header can have") as refusal:
        hasty().read(f"{server.address}/x", 0, 10)
    assert "ame" not in str(refusal.value).replace("same", "")
    other.shutdown()
    other.server_close()


def test_secrets_of_addresses_are_left_out():
    assert (
        without_secrets("https://ada:p@ss@h.org/{0..9}.tar?sig=a&b=c changed")
        == "https://h.org/{0..9}.tar changed"
    )
    assert without_secrets("'s3://key:secret@b/0.tar#x'") == "'s3://b/0.tar'"
    assert without_secrets("Max retries exceeded with url: /0.tar?sig=1 (Caused by x)") == (
        "Max retries exceeded with url: /0.tar (Caused by x)"
    )
    assert without_secrets("pipe:curl -s https://h/0.tar?sig=1 -o -") == "pipe:curl -s https://h/0.tar -o -"
    assert without_secrets("what? no: a=b, ada@h.org") == "what? no: a=b, ada@h.org"


def redirecting(root: Path, running: Server) -> Iterator[str]:
    """Yield the address of a server that redirects to signed addresses of another one."""
    with serving(root) as storage:
        for path in root.glob("*.tar"):
            running.answers[f"/{path.name}"] = lambda handler, path=path: head(
                handler,
                302,
                Location=f"{storage.address}/{path.name}?X-Signature=hunter2",
                Content_Length="0",
            )
        yield running.address


def set_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables to which addresses refer."""
    monkeypatch.setenv("PASSWORD", "lovelace")
    monkeypatch.setenv("QUERY", "sesame")


@pytest.mark.parametrize("command", [("index",), ("check",)])
def test_commands_on_remote_shards_show_no_secret(server, tmp_path, monkeypatch, command):
    set_secrets(monkeypatch)
    write_shards(tmp_path / "www", [3, 2])
    for address in redirecting(tmp_path / "www", server):
        host = address.removeprefix("http://")
        pattern = f"http://ada:${{PASSWORD}}@{host}/{{00000..00001}}.tar?token=${{QUERY}}"
        out = [str(tmp_path / "index")] if command == ("index",) else []
        finished = subprocess.run(
            [sys.executable, "-m", "flipscale", "data", *command, pattern, *out],
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        missing = subprocess.run(
            [sys.executable, "-m", "flipscale", "data", *command, pattern.replace("0001", "0002"), *out],
            capture_output=True,
            text=True,
            check=False,
        )
        assert missing.returncode != 0
        for secret in ("hunter2", "lovelace", "sesame"):
            assert secret not in finished.stdout + finished.stderr + missing.stdout + missing.stderr


@pytest.mark.slow
def test_a_remote_run_shows_no_secret(server, tiny_run, data_set, monkeypatch):
    """Training through signed redirects, with a user and a password in the address."""
    set_secrets(monkeypatch)
    for address in redirecting(data_set / "train", server):
        host = address.removeprefix("http://")
        train = f"http://ada:${{PASSWORD}}@{host}/{{00000..00002}}.tar?token=${{QUERY}}"
        finished = tiny_run("remote", data={"train": train, "workers": 1}).train()
        assert finished.returncode == 0, finished.stderr
        assert "indexing http://127.0.0.1" in finished.stderr
        for secret in ("hunter2", "lovelace", "sesame"):
            assert secret not in finished.stdout + finished.stderr
