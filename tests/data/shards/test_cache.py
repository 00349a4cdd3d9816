"""The cache: it returns the bytes of the shard within its limit, even if it is shared or damaged."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from flipscale.data.shards.cache import BlockCache
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
    return cache.directory / cache._name("s", number)


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


def test_files_of_others_stay_and_those_of_dead_processes_are_removed(tmp_path):
    (tmp_path / "thesis.tex").write_bytes(bytes(100 * BLOCK))
    abandoned = tmp_path / ".0123.block.dead"
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (0, 0))
    cache = BlockCache(tmp_path, 4 * BLOCK)
    for number in range(8):
        cache.read("s", number * BLOCK, 10, len(DATA), Shard())
    assert (tmp_path / "thesis.tex").stat().st_size == 100 * BLOCK
    assert not abandoned.exists()


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
    assert sum(path.stat().st_size for path in blocks(tmp_path)) <= 8 * BLOCK + 3 * (BLOCK + 4)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".block")] == []
    assert cache.failures == 0


def test_reading_continues_without_a_writable_directory(tmp_path, caplog):
    """There is one warning, and a count of failures. The test of a full disk is in test_data_job.py."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache\.directory .* cannot be made"):
        BlockCache(tmp_path / "file" / "cache", 10**7)
    cache, shard = BlockCache(tmp_path / "cache", 64 * BLOCK), Shard()
    (tmp_path / "cache").rmdir()
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
