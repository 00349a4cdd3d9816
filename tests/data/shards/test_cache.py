"""The cache: it returns the bytes of the shard within its limit, even if it is shared or damaged."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.cache_blocks import Blocks
from flipscale.errors import UserError

BLOCK = 64 << 10
DATA = np.random.default_rng(0).bytes(20 * BLOCK + 777)


class Shard:
    """A shard that records what is read of it."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def __call__(self, offset: int, size: int) -> bytes:
        self.read.append((offset, size))
        return DATA[offset : offset + size]


def blocks(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.block"))


def test_a_block_is_fetched_once(tmp_path):
    shard, cache = Shard(), BlockCache(tmp_path / "new" / "cache", 64 * BLOCK)
    for offset, size in [(10, 20), (BLOCK - 5, 10), (3 * BLOCK, 2 * BLOCK + 1), (len(DATA) - 9, 9), (10, 20)]:
        assert cache.read("s", offset, size, len(DATA), shard) == DATA[offset : offset + size]
    assert shard.read == [(n * BLOCK, BLOCK) for n in (0, 1, 3, 4, 5)] + [(20 * BLOCK, 777)]
    # Another process uses the blocks of the first. Another shard, or another version of it, has its own.
    other = BlockCache(tmp_path / "new" / "cache", 64 * BLOCK)
    assert other.read("s", 10, 2 * BLOCK - 20, len(DATA), shard) == DATA[10 : 2 * BLOCK - 10]
    assert len(shard.read) == 6
    other.read("t", 10, 20, len(DATA), shard)
    assert len(shard.read) == 7


def test_the_limit_holds_and_the_last_used_stay(tmp_path):
    shard, cache = Shard(), BlockCache(tmp_path, 8 * BLOCK)
    for number in range(20):
        cache.read("s", number * BLOCK, 10, len(DATA), shard)
        held = sum(path.stat().st_size for path in blocks(tmp_path))
        assert held <= 8 * BLOCK
        os.utime(blocks_of(cache, 0), ns=(0, 10**18 * (number + 2)))  # block 0 is the one used last
    assert blocks_of(cache, 0).exists()
    assert not blocks_of(cache, 1).exists()
    # A block that was evicted while it is open is still read.
    for path in blocks(tmp_path):
        path.unlink()
    count = len(shard.read)
    fresh = BlockCache(tmp_path, 8 * BLOCK)
    assert fresh.read("s", 0, 10, len(DATA), shard) == DATA[:10]
    assert fresh.read("s", 5, 10, len(DATA), shard) == DATA[5:15]
    blocks_of(cache, 0).unlink()
    assert fresh.read("s", 5, 10, len(DATA), shard) == DATA[5:15]
    assert len(shard.read) == count + 1


def blocks_of(cache: BlockCache, number: int) -> Path:
    return cache.directory / cache._blocks.name("s", cache.block, number)


@pytest.mark.parametrize("damage", ["cut", "one bit", "longer", "empty"])
def test_a_damaged_block_is_read_again(tmp_path, damage):
    shard = Shard()
    BlockCache(tmp_path, 64 * BLOCK).read("s", 0, 10, len(DATA), shard)
    (path,) = blocks(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[100] ^= 1
    changed = {"cut": content[:-9], "one bit": content, "longer": content + b"x", "empty": b""}[damage]
    path.write_bytes(changed)
    assert BlockCache(tmp_path, 64 * BLOCK).read("s", 90, 20, len(DATA), shard) == DATA[90:110]
    assert shard.read == [(0, BLOCK)] * 2


def test_abandoned_files_are_removed(tmp_path):
    cache = BlockCache(tmp_path, 4 * BLOCK)
    abandoned = tmp_path / f".{'0' * 32}.block.{'f' * 32}"
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (0, 0))
    for number in range(8):
        cache.read("s", number * BLOCK, 10, len(DATA), Shard())
    assert not abandoned.exists()


def test_files_of_others_stay_and_do_not_count(tmp_path):
    """Names that only look like those of blocks are those of others, whatever their age."""
    cache = BlockCache(tmp_path, 4 * BLOCK)
    names = ["thesis.tex", "thesis.block", "my.block.txt", ".0123.block.dead", f"{'0' * 32}.block"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(10 * BLOCK) + b"end")
        os.utime(tmp_path / name, (0, 0))
    os.mkfifo(tmp_path / f"{'1' * 32}.block")
    (tmp_path / f"{'2' * 32}.block").symlink_to(tmp_path / "thesis.tex")
    (tmp_path / f"{'3' * 32}.block").mkdir()
    others = set(tmp_path.iterdir())
    for number in range(20):
        cache.read("s", number * BLOCK, 10, len(DATA), Shard())
    assert others <= set(tmp_path.iterdir())
    assert all((tmp_path / name).stat().st_size == 10 * BLOCK + 3 for name in names)
    own = [path for path in blocks(tmp_path) if path not in others]
    assert 1 <= len(own) <= 3


def test_blocks_of_the_version_before_are_evicted(tmp_path):
    old = tmp_path / f"{'a' * 32}.block"
    content = bytes(3 * BLOCK)
    old.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))
    os.utime(old, (0, 0))
    cache = BlockCache(tmp_path, 4 * BLOCK)
    for number in range(3):
        cache.read("s", number * BLOCK, 10, len(DATA), Shard())
    assert not old.exists()


@pytest.mark.parametrize("mark", [None, "block"])
def test_a_directory_of_others_is_refused(tmp_path, mark):
    (tmp_path / "thesis.tex").write_text("precious")
    if mark is not None:  # a cache of the version before has no marker
        (tmp_path / f"{'0' * 32}.block").write_bytes(b"x")
        BlockCache(tmp_path, 10**7)
        return
    with pytest.raises(UserError, match=r"holds other files \('thesis\.tex'\); name an empty directory"):
        BlockCache(tmp_path, 10**7)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_key_is_made_once_and_only_for_the_user(tmp_path):
    first, second = BlockCache(tmp_path, 10**7), BlockCache(tmp_path, 10**7)
    assert blocks_of(first, 0) == blocks_of(second, 0)
    (key,) = tmp_path.iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(UserError, match="is not a key that only you can read"):
        BlockCache(tmp_path, 10**7)
    key.unlink()
    assert blocks_of(BlockCache(tmp_path, 10**7), 0) != blocks_of(first, 0)


def test_a_directory_that_everybody_can_write_is_warned_of(tmp_path, caplog):
    tmp_path.chmod(0o777)
    BlockCache(tmp_path, 10**7)
    assert "can be written by everybody" in caplog.text


@pytest.mark.parametrize("forgery", ["another content", "another block", "fifo", "link", "directory"])
def test_a_block_that_a_neighbour_made_is_not_read(tmp_path, forgery):
    """A neighbour who can write the directory knows everything but the key."""
    shard, cache = Shard(), BlockCache(tmp_path, 64 * BLOCK)
    for number in range(2):
        cache.read("s", number * BLOCK, 10, len(DATA), shard)
    path, other = blocks_of(cache, 0), blocks_of(cache, 1)
    if forgery == "another content":
        content = bytes(BLOCK)
        path.write_bytes(content + Blocks(tmp_path, b"guess").trailer(path.name, content))
    elif forgery == "another block":
        path.write_bytes(other.read_bytes())
    else:
        path.unlink()
        {"fifo": os.mkfifo, "link": lambda at: at.symlink_to(other), "directory": os.mkdir}[forgery](path)
    fresh = BlockCache(tmp_path, 64 * BLOCK)
    assert fresh.read("s", 5, 10, len(DATA), shard) == DATA[5:15]
    assert shard.read[2:] == [(0, BLOCK)]
    assert fresh.failures == 0


def _use(cache: BlockCache, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for _ in range(150):
        offset = int(draw.integers(len(DATA) - 3000))
        found = cache.read("s", offset, 3000, len(DATA), lambda at, size: DATA[at : at + size])
        assert found == DATA[offset : offset + 3000]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_the_cache_while_it_evicts(tmp_path, method):
    context = multiprocessing.get_context(method)
    cache = BlockCache(tmp_path, 8 * BLOCK)
    workers = [context.Process(target=_use, args=(cache, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sum(path.stat().st_size for path in blocks(tmp_path)) <= 8 * BLOCK + 3 * (BLOCK + 48)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".block"] == [
        f".flipscale-cache.{os.geteuid()}"
    ]
    assert cache.failures == 0


def test_reading_continues_without_a_writable_directory(tmp_path, caplog):
    """There is one warning, and a count of failures. The test of a full disk is in test_data_job.py."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache\.directory .* cannot be made"):
        BlockCache(tmp_path / "file" / "cache", 10**7)
    cache, shard = BlockCache(tmp_path / "cache", 64 * BLOCK), Shard()
    shutil.rmtree(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        for offset in (0, 2 * BLOCK, 5):
            assert cache.read("s", offset, 10, len(DATA), shard) == DATA[offset : offset + 10]
    assert cache.failures == 1
    assert [record.message for record in caplog.records if "reading continues without it" in record.message]
    assert len(caplog.records) == 1
    assert shard.read[1:] == [(2 * BLOCK, 10), (5, 10)]  # no more whole blocks


def test_cache_is_passed_to_workers_only_while_they_start(tmp_path):
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(BlockCache(tmp_path, 10**7))
