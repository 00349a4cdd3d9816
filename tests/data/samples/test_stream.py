"""The stream of batches: the same for any number of workers and processes, and from any step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from support.readers import hasty, open_reader
from support.shards import write_shards

from flipscale.budget import Budget
from flipscale.config import Augmentation, Phase
from flipscale.data.order.mixture import Mixture
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.samples.stream import CHUNK, Batch, LaneShare, Stream, default_workers
from flipscale.data.shards.index import Index
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.errors import StoppedEarly, UserError
from flipscale.order_digest import OrderDigest

LANES = 8
BAD_AT = {(0, 3): "half a jpeg", (1, 0): "missing caption", (2, 7): "one pixel", (2, 8): "not utf-8"}
BAD_AT |= {
    (shard, ordinal): "no image" for shard, ordinal in [(0, 11), (0, 20), (0, 28), (1, 9), (2, 22), (2, 40)]
}
# Batches of several chunks and of less than one, a short step at the end of either phase; 5 epochs in all.
PHASES = [("first", 360, 160), ("second", 120, 24), ("third", 8, 24)]
BUDGET = Budget.of(
    [Phase(name=n, samples=s, mask_ratio=0.5, batch_size=b, base_lr=1e-3) for n, s, b in PHASES], LANES
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("stream")
    return build_index(write_shards(root, [33, 20, 44], BAD_AT), root / "index")


def stream(index: Index, rank: int = 0, world_size: int = 1, workers: int = 0) -> Stream:
    reader, _ = open_reader(index, LANES, window=5, size=8, storage=hasty())
    return Stream(reader, BUDGET, LaneShare(LANES, rank, world_size), workers)


@pytest.fixture(scope="module")
def straight(index: Index) -> list[Batch]:
    """The whole budget, read in this process."""
    return list(stream(index).batches(0))


def assert_equal(batches: Iterable[Batch], expected: list[Batch]) -> None:
    read = list(batches)
    assert [batch.step for batch in read] == [batch.step for batch in expected]
    for batch, wanted in zip(read, expected, strict=True):
        assert batch.positions.equal(wanted.positions)
        assert batch.images.equal(wanted.images)
        assert batch.tokens.equal(wanted.tokens)
        assert batch.digest == wanted.digest


def test_the_batches_are_the_steps_of_the_budget(straight, tokenizer):
    assert [batch.step for batch in straight] == list(BUDGET.steps_from(0))
    assert [batch.step.size for batch in straight] == [160, 160, 40, 24, 24, 24, 24, 24, 8]
    for batch in straight:
        n = batch.step.size
        assert batch.positions.tolist() == list(range(batch.step.start, batch.step.stop))
        assert (batch.images.shape, batch.images.dtype) == ((n, 3, 8, 8), torch.uint8)
        assert (batch.tokens.shape, batch.tokens.dtype) == ((n, tokenizer.context_length), torch.int64)
    assert straight[0].step.size > CHUNK
    found = {(record.shard, record.ordinal) for batch in straight for record in batch.bad}
    assert found == set(BAD_AT)
    assert sum(len(batch.bad) for batch in straight) == len(BAD_AT)


def test_stream_resumes_from_any_step(index, straight):
    for number, batch in enumerate(straight):
        assert_equal(stream(index).batches(batch.step.start), straight[number:])
    assert list(stream(index).batches(BUDGET.total)) == []
    with pytest.raises(ValueError, match="no step of this budget starts at 8"):
        next(stream(index).batches(8))


@pytest.mark.parametrize("workers", [0, 1])
def test_every_phase_has_images_of_its_own_size(index, straight, workers):
    reader, _ = open_reader(index, LANES, window=5, size=8, storage=hasty())
    sized = Stream(reader, BUDGET, LaneShare(LANES), workers, image_sizes=[8, 12, 8])
    for batch, same in zip(sized.batches(0), straight, strict=True):
        assert batch.images.shape[-1] == (12 if batch.step.phase == 1 else 8)
        assert batch.step.phase == 1 or batch.images.equal(same.images)
        assert (batch.digest, batch.step) == (same.digest, same.step)
        assert batch.positions.equal(same.positions)
        assert batch.tokens.equal(same.tokens)


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"
)  # more than this machine's cores
@pytest.mark.parametrize("workers", [1, 3])
def test_loader_workers_make_no_difference(index, straight, workers):
    read = list(stream(index, workers=workers).batches(0))
    assert_equal(read, straight)
    # Each worker reports the bad samples it meets; the quarantine list keeps one record of each.
    assert {(r.shard, r.ordinal, r.reason) for batch in read for r in batch.bad} == {
        (r.shard, r.ordinal, r.reason) for batch in straight for r in batch.bad
    }
    assert_equal(stream(index, workers=workers).batches(straight[4].step.start), straight[4:])


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_processes_together_read_the_single_stream(index, straight, world_size):
    ranks = [list(stream(index, rank, world_size).batches(0)) for rank in range(world_size)]
    for number, wanted in enumerate(straight):
        parts = [batches[number] for batches in ranks]
        assert {len(part.positions) for part in parts} == {wanted.step.size // world_size}
        assert all(part.step == wanted.step for part in parts)
        order = torch.cat([part.positions for part in parts]).argsort()
        assert torch.cat([part.positions for part in parts])[order].equal(wanted.positions)
        assert torch.cat([part.images for part in parts])[order].equal(wanted.images)
        assert torch.cat([part.tokens for part in parts])[order].equal(wanted.tokens)
        assert sum((part.digest for part in parts), OrderDigest()) == wanted.digest


@pytest.mark.parametrize("workers", [0, 1])
def test_fatal_errors_are_reported_in_one_sentence(tmp_path, workers):
    """Errors in a loader worker count as well: torch would turn them into tracebacks."""
    pattern = write_shards(tmp_path, [40])
    index = build_index(pattern, tmp_path / "index")
    os.truncate(tmp_path / "00000.tar", 5000)
    with pytest.raises(UserError) as wrong:
        list(stream(index, workers=workers).batches(0))
    assert str(wrong.value).startswith(f"{tmp_path / '00000.tar'} became shorter")
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(StoppedEarly) as stop:
        list(stream(index, workers=workers).batches(0))
    assert str(stop.value).startswith(f"{tmp_path / '00000.tar'} cannot be read")
    assert "\n" not in str(wrong.value) + str(stop.value)
    # The tracebacks, which this test still holds, do not keep the workers alive.
    assert multiprocessing.active_children() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_to_the_gpu_whole(index, straight, workers):
    device = torch.device("cuda")
    reader, _ = open_reader(index, LANES, window=5, size=8)
    for batch, wanted in zip(
        Stream(reader, BUDGET, LaneShare(LANES), workers, device).batches(0), straight, strict=True
    ):
        assert {batch.images.device.type, batch.tokens.device.type, batch.positions.device.type} == {"cuda"}
        assert batch.images.cpu().equal(wanted.images)
        assert batch.tokens.cpu().equal(wanted.tokens)
        assert batch.positions.cpu().equal(wanted.positions)


def test_workers_leave_signals_to_the_training_process(index, straight):
    batches = stream(index, workers=1).batches(0)
    read = [next(batches)]
    children = multiprocessing.active_children()
    assert len(children) == 1
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(children[0].pid or 0, number)
    assert_equal(read + list(batches), straight)


def test_workers_end_with_a_stream_that_is_left_early(index):
    batches = stream(index, workers=2).batches(0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_stopped_worker_ends_with_its_stream(index):
    batches = stream(index, workers=2).batches(0)
    next(batches)
    worker, _ = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    batches.close()
    worker.join(timeout=60)
    assert multiprocessing.active_children() == []


class CountingSource(ShardSource):
    """A source that records the size of each read from a shard; a read is one member of a sample."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.sizes: list[int] = []

    def read(self, shard: int, offset: int, size: int) -> bytes:
        self.sizes.append(size)
        return super().read(shard, offset, size)


@pytest.mark.slow
def test_resuming_in_the_middle_of_an_epoch_reads_no_more_than_starting(tmp_path, tokenizer):
    """In both cases, only the first batch of 1,000 shards is read, and so the time is the same."""
    shards, each, lanes, size = 1000, 4, 16, 64
    pattern = write_shards(tmp_path, [each] * shards)
    build_index(pattern, tmp_path / "index", workers=2)
    budget = Budget.of(
        [Phase(name="p", samples=shards * each // size * size, mask_ratio=0.5, batch_size=size, base_lr=1.0)],
        lanes,
    )
    middle = shards * each // 2 // size * size
    seconds: dict[int, list[float]] = {0: [], middle: []}
    for turn in range(8):
        for start in (0, middle) if turn % 2 else (middle, 0):
            began = time.process_time()
            index = load_index(tmp_path / "index")
            source, order = CountingSource(index), Mixture(index.counts, lanes, 128, 0)
            reader = SampleReader(source, order, tokenizer, ReaderSettings(32, Augmentation(), 10**6))
            batches = Stream(reader, budget, LaneShare(lanes), 0).batches(start)
            assert next(batches).positions.tolist() == list(range(start, start + size))
            seconds[start].append(time.process_time() - began)
            batches.close()
            # Each sample has an image and a caption. One window of every lane would be 2,048 samples.
            assert len(source.sizes) == 2 * size
    assert statistics.median(seconds[middle]) <= 1.5 * statistics.median(seconds[0])


def test_default_workers():
    assert [default_workers(cores) for cores in (1, 2, 3, 12, 17, 96)] == [1, 1, 2, 11, 16, 16]
