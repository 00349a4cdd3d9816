"""The order digest is the same wherever the shards are stored, and whichever processes read them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.range_server import FAULTS, RangeServer, serving
from support.readers import MAX_PIXELS
from support.shards import tiny_tokenizer, write_shards

from flipscale.budget import Budget
from flipscale.config import Augmentation, Phase
from flipscale.data.order.mixture import Mixture
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.samples.stream import LaneShare, Stream
from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.index import Index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.journal import IndexKind
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import Patience, Storage
from flipscale.order_digest import OrderDigest

LANES = 4
BAD_AT = {(0, 3): "half a jpeg", (1, 0): "missing caption", (1, 1): "no image"}
PATIENT = Patience(pauses=(0.01, 0.02, 0.05, 0.1, 0.2), attempt=0.3)
BUDGET = Budget.of([Phase(name="a", samples=192, mask_ratio=0.5, batch_size=32, base_lr=1e-3)], LANES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("www")
    write_shards(root, [33, 20, 29], BAD_AT)
    return root


@pytest.fixture(scope="module")
def server(shards: Path) -> Iterator[RangeServer]:
    with serving(shards) as running:
        yield running


@pytest.fixture(scope="module")
def indices(shards: Path, server: RangeServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Index]:
    """The indices of the same shards as files, over http, and over http without a members table."""
    root, storage = tmp_path_factory.mktemp("indices"), Storage(patience=PATIENT)
    local, remote = f"{shards}/{{00000..00002}}.tar", f"{server.address}/{{00000..00002}}.tar"
    return {
        "local": build_index(local, root / "local"),
        "http": build_index(remote, root / "http", storage=storage, workers=2),
        "http, no members": build_index(
            remote, root / "lazy", storage=storage, kind=IndexKind(members=False)
        ),
    }


def read(index: Index, cache: BlockCache | None, world_size: int, workers: int) -> dict[str, Any]:
    """Return the digest, the pixels by position, and the bad samples of the whole budget."""
    pixels: dict[int, bytes] = {}
    digest = OrderDigest()
    bad: set[tuple[int, int, str, str]] = set()
    for rank in range(world_size):
        source = ShardSource(index, Storage(patience=PATIENT), cache)
        order = Mixture(index.counts, LANES, 5, 0)
        reader = SampleReader(source, order, tiny_tokenizer(), ReaderSettings(8, Augmentation(), MAX_PIXELS))
        for batch in Stream(reader, BUDGET, LaneShare(LANES, rank, world_size), workers).batches(0):
            digest += batch.digest
            bad |= {(record.shard, record.ordinal, record.key, record.reason) for record in batch.bad}
            for position, image in zip(batch.positions.tolist(), batch.images, strict=True):
                pixels[position] = image.contiguous().numpy().tobytes()
    return {"digest": digest, "bad": bad, "pixels": pixels}


@pytest.fixture(scope="module")
def straight(indices: dict[str, Index]) -> dict[str, Any]:
    found = read(indices["local"], None, 1, 0)
    assert {pair[:2] for pair in found["bad"]} == set(BAD_AT)
    return found


def test_an_index_over_http_is_that_of_the_files(indices):
    local, remote, lazy = indices.values()
    assert remote.counts.tolist() == lazy.counts.tolist() == local.counts.tolist()
    assert remote.members.tolist() == local.members.tolist()
    assert remote.fingerprint == lazy.fingerprint == local.fingerprint
    assert not (lazy.directory / "members.bin").exists()


# test_stream.py has the local combinations. Here, each remote place is combined with some of the rest.
@pytest.mark.parametrize(
    ("place", "cached", "world_size", "workers"),
    [
        ("local", True, 2, 0),
        ("http", False, 1, 0),
        ("http", True, 4, 1),
        ("http", False, 2, 2),
        ("http, no members", True, 2, 2),
        pytest.param("http, no members", False, 1, 4, marks=pytest.mark.long),
        *(
            pytest.param(place, cached, world_size, workers, marks=pytest.mark.long)
            for place in ("local", "http", "http, no members")
            for cached in (False, True)
            for world_size in (1, 2, 4)
            for workers in range(5)
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_digest_is_equal_in_every_place(
    tmp_path, indices, server, straight, place, cached, world_size, workers
):
    server.fault_every, server.faults = 61, FAULTS
    try:
        cache = BlockCache(tmp_path / "cache", 1 << 20) if cached else None
        found = read(indices[place], cache, world_size, workers)
    finally:
        server.fault_every = 0
    assert found["digest"] == straight["digest"]
    assert found["pixels"] == straight["pixels"]
    assert found["bad"] == straight["bad"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.long
def test_workers_that_are_not_forked_read_the_same_order(indices, straight, method, tmp_path):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        found = read(indices["http"], BlockCache(tmp_path, 1 << 20), 1, 2)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert found["digest"] == straight["digest"]
