"""Shards that are not local files: every fault of a server is survived or reported, and no call hangs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from support.range_server import FAULTS, RangeServer, serving
from support.readers import hasty
from support.shards import good, write_shards, write_tar
from support.time_limits import time_limit

from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.index import Shard
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import DataReadError, Patience, Storage
from flipscale.errors import UserError

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "x.bin").write_bytes(CONTENT)
    with serving(tmp_path / "www") as running:
        yield running


def test_ranges_are_read_over_http(server):
    storage, path = hasty(), f"{server.address}/x.bin?signature=1"
    status = storage.status(path)
    assert status.bytes == len(CONTENT)
    assert status.version.startswith('"')
    for offset, size in [(0, 10), (5000, 3000), (len(CONTENT) - 3, 10), (len(CONTENT), 5), (7, 0)]:
        assert storage.read(path, offset, size, status) == CONTENT[offset : offset + size]
    with storage.open(path) as file:
        file.seek(100)
        assert file.read(50) == CONTENT[100:150]
        file.seek(-5, os.SEEK_END)
        assert file.read() == CONTENT[-5:]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(server, fault):
    server.fault_every, server.faults = 2, (fault,)
    storage = hasty()
    began = time.monotonic()
    for offset in (0, 3000):
        assert storage.read(f"{server.address}/x.bin", offset, 2000) == CONTENT[offset : offset + 2000]
    assert server.injected[fault] >= 1
    assert time.monotonic() - began < time_limit(10)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_the_segment_in_time(server, fault):
    server.fault_every, server.faults = 1, (fault,)
    began = time.monotonic()
    with pytest.raises(DataReadError, match=r"x\.bin cannot be read .* after 2 retries") as stop:
        hasty().read(f"{server.address}/x.bin", 0, 4000)
    assert time.monotonic() - began < time_limit(3 * 1.0 + 5)  # three attempts of a second each
    assert "\n" not in str(stop.value)


def test_faults_that_no_retry_can_fix_are_reported(server, tmp_path):
    storage = hasty()
    with pytest.raises(FileNotFoundError):
        storage.status(f"{server.address}/none.tar")
    with pytest.raises(UserError, match=r"the shard .*none\.tar does not exist"):
        build_index(f"{server.address}/none.tar", tmp_path / "index", storage=storage)
    status = storage.status(f"{server.address}/x.bin")
    server.salt = "another"
    with pytest.raises(UserError, match=r"x\.bin changed since the index was made"):
        storage.read(f"{server.address}/x.bin", 0, 10, status)
    server.ranges = False
    with pytest.raises(UserError, match="does not answer range requests"):
        storage.read(f"{server.address}/x.bin", 0, 10)
    with pytest.raises(DataReadError):  # no server listens on this port
        storage.read("http://127.0.0.1:9/x.tar", 0, 10)


def test_storage_of_fsspec_is_read():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/set/0.bin", CONTENT)
    storage = hasty()
    status = storage.status("memory://set/0.bin")
    assert status.bytes == len(CONTENT)
    assert storage.read("memory://set/0.bin", 300, 40, status) == CONTENT[300:340]
    with pytest.raises(FileNotFoundError):
        storage.status("memory://set/none.bin")
    memory.pipe_file("/set/0.bin", CONTENT + b"more")
    with pytest.raises(UserError, match="changed since the index was made"):
        hasty().read("memory://set/0.bin", 0, 4, status)
    with pytest.raises(UserError, match="the storage of nowhere://x is not known"):
        storage.status("nowhere://x")


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(protocol, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # even if it is installed
    with pytest.raises(UserError, match=f"pip install {package}"):
        hasty().status(f"{protocol}://bucket/0.tar")


def test_only_headers_are_read_for_an_index(server):
    write_tar(server.root / "0.tar", [("0.jpg", bytes(2 << 20)), ("0.txt", b"a"), ("1.jpg", bytes(2 << 20))])
    index = build_index(f"{server.address}/0.tar", server.root.parent / "index", storage=hasty())
    assert index.counts.tolist() == [2]
    assert server.sent < 200_000


def pipe(path: Path) -> str:
    return f"pipe:cat {path}"


def test_commands_run_only_by_name_and_without_a_shell(tmp_path):
    path = write_tar(tmp_path / "0.tar", good(0))
    with hasty("cat").open(pipe(path)) as file:
        assert file.read() == path.read_bytes()
    for command in (pipe(path), f"pipe:/bin/cat {path}", "pipe:", "pipe:'"):
        with pytest.raises(UserError, match=r"is not allowed; name it in data\.allow_pipe|is not a command"):
            hasty("echo").open(command)
    with pytest.raises(DataReadError, match=r"cat ended with exit code 1: .*No such file"):
        hasty("cat").open(f"pipe:cat {path} ; touch {tmp_path}/made")
    assert not (tmp_path / "made").exists()
    began = time.monotonic()
    with pytest.raises(DataReadError, match=r"sleep took longer than 0\.5 s"):
        Storage(("sleep",), Patience((), 1.0, 0.5)).open("pipe:sleep 600")
    assert time.monotonic() - began < 300


def test_shards_from_commands_are_read_through_the_cache(tmp_path):
    write_shards(tmp_path / "data", [3, 2])
    pattern = f"pipe:cat {tmp_path}/data/{{00000..00001}}.tar"
    storage = hasty("cat")
    index = build_index(pattern, tmp_path / "index", storage=storage)
    assert load_index(tmp_path / "index").counts.tolist() == [3, 2]
    with pytest.raises(UserError, match=r"set data\.cache"):
        ShardSource(index, storage)
    source = ShardSource(index, storage, BlockCache(tmp_path / "cache", 10**7))
    read = [
        bytes_of(source, shard, ordinal) for shard, count in enumerate([3, 2]) for ordinal in range(count)
    ]
    local = ShardSource(build_index(pattern.removeprefix("pipe:cat "), tmp_path / "local"))
    assert read == [bytes_of(local, s, o) for s, count in enumerate([3, 2]) for o in range(count)]
    # All blocks are in the cache, so that the command is not needed from here on.
    (tmp_path / "data").rename(tmp_path / "away")
    again = ShardSource(index, storage, BlockCache(tmp_path / "cache", 10**7))
    assert bytes_of(again, 1, 1) == read[-1]


def bytes_of(source: ShardSource, shard: int, ordinal: int) -> bytes:
    row = source.member(shard, ordinal)
    return source.read(shard, int(row["image"]), int(row["image_bytes"]))


def test_a_changed_remote_shard_is_refused_before_a_start(server, tmp_path):
    write_tar(server.root / "0.tar", good(0))
    index = build_index(f"{server.address}/0.tar", tmp_path / "index", storage=hasty())
    index.verify(hasty())
    assert isinstance(index.shards[0], Shard)
    write_tar(server.root / "0.tar", good(1))
    with pytest.raises(UserError, match=r"0\.tar changed since the index was made"):
        index.verify(hasty())
