"""Loader workers that crash: the sample is found, recorded and replaced, and the order is exact."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
from support.readers import open_reader
from support.shards import encoded, good, picture, write_tar
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from flipscale.budget import Budget
from flipscale.config import Phase
from flipscale.data.quarantine import BadRecord, Quarantine, read_quarantine
from flipscale.data.samples import decode
from flipscale.data.samples.decode import EncodedImage
from flipscale.data.samples.isolation import crashes
from flipscale.data.samples.stream import Batch, LaneShare, Stream, _Loader
from flipscale.data.shards.index import Index
from flipscale.data.shards.indexing import build_index
from flipscale.errors import RunError

LANES = 4
BUDGET = Budget.of(
    [Phase(name="p", samples=400, mask_ratio=0.5, batch_size=80, base_lr=1e-3)], LANES
)  # epochs of 60 samples
CRASHING = encoded(picture(5), "PNG")
BROKEN = CRASHING[:200]


def shards(root: Path, image: bytes) -> Index:
    """Index a shard of 60 samples, one of which has this image."""
    members = [member for number in range(60) for member in good(number)]
    members[2 * 37] = ("000000037.png", image)
    root.mkdir()
    return build_index(str(write_tar(root / "0.tar", members)), root / "index")


def batches(index: Index, workers: int, start: int = 0) -> list[Batch]:
    reader, _ = open_reader(index, LANES, window=5, size=8)
    return list(Stream(reader, BUDGET, LaneShare(LANES), workers).batches(start))


def dying(on: Callable[[EncodedImage], bool], number: int) -> Callable[[EncodedImage, int], None]:
    """Return a decoder that ends its process by a signal.

    It stands in for a fault of a library: no installed one crashes on cue.
    """

    def turbo(image: EncodedImage, scale: int) -> None:
        if on(image):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return turbo


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_sample_that_crashes_a_worker_is_replaced_as_any_unusable_one(tmp_path, monkeypatch, workers):
    expected = batches(shards(tmp_path / "broken", BROKEN), 0)
    index = shards(tmp_path / "crashing", CRASHING)
    monkeypatch.setattr(decode, "_turbo_decoded", dying(lambda image: image.data == CRASHING, signal.SIGSEGV))
    read = batches(index, workers)
    for batch, wanted in zip(read, expected, strict=True):
        assert batch.step == wanted.step
        assert batch.digest == wanted.digest
        assert batch.positions.equal(wanted.positions)
        assert batch.images.equal(wanted.images)
        assert batch.tokens.equal(wanted.tokens)
    (record,) = [record for batch in read for record in batch.bad]
    assert (record.ordinal, record.key) == (37, "000000037")
    assert record.reason == "the image crashes the decoder (Segmentation fault)"
    assert multiprocessing.active_children() == []
    # From the middle, as after a restart.
    resumed = batches(index, workers, read[2].step.start)
    assert [batch.digest for batch in resumed] == [batch.digest for batch in read[2:]]


@pytest.mark.slow
def test_a_sample_that_decodes_by_itself_is_not_to_blame(tmp_path, monkeypatch):
    """The worker crashes once, for a reason of its own: nothing is left out."""
    index = shards(tmp_path / "whole", encoded(picture(5), "PNG"))
    expected = batches(index, 0)
    once = tmp_path / "crashed"

    def first(image: EncodedImage) -> bool:
        if once.exists() or image.header.kind != "png":
            return False
        once.touch()
        return True

    monkeypatch.setattr(decode, "_turbo_decoded", dying(first, signal.SIGBUS))
    read = batches(index, 2)
    assert [batch.digest for batch in read] == [batch.digest for batch in expected]
    assert [record for batch in read for record in batch.bad] == []


@pytest.mark.slow
def test_crashes_without_a_culprit_end_the_run(tmp_path, monkeypatch):
    index = shards(tmp_path / "whole", CRASHING)

    def in_workers(image: EncodedImage) -> bool:
        return multiprocessing.parent_process() is not None

    monkeypatch.setattr(decode, "_turbo_decoded", dying(in_workers, signal.SIGSEGV))
    with pytest.raises(RunError, match=r"loader workers crashed 4 times \(Segmentation fault\)"):
        batches(index, 1)
    assert multiprocessing.active_children() == []


def test_later_starts_leave_out_what_earlier_ones_did(tmp_path):
    """Even if it does not crash again, or if a later version can read it: the order stays the same."""
    expected = batches(shards(tmp_path / "broken", BROKEN), 0)
    reader, _ = open_reader(shards(tmp_path / "whole", CRASHING), LANES, window=5, size=8)
    quarantine = tmp_path / "quarantine.jsonl"
    Quarantine(quarantine).add([BadRecord(0, 37, "", "", "the image crashes the decoder (Aborted)")])
    reader.leave_out(read_quarantine(quarantine))
    reader.leave_out(read_quarantine(tmp_path / "missing"))
    read = list(Stream(reader, BUDGET, LaneShare(LANES), 0).batches(0))
    assert [batch.digest for batch in read] == [batch.digest for batch in expected]


def test_a_killed_worker_is_not_a_crash(tmp_path):
    reader, _ = open_reader(shards(tmp_path / "whole", CRASHING), LANES, window=5, size=8)
    stream = Stream(reader, BUDGET, LaneShare(LANES), 1).batches(0)
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed by signal: Killed"):
        list(stream)


def test_a_workers_end_is_noticed_where_its_chunk_is_read(tmp_path, monkeypatch):
    """Else it would end a training step, and a sample's crash would count as a fault of the program."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    numbers: Any = range(2)  # a dataset by what it can do
    other = DataLoader(numbers, num_workers=1, multiprocessing_context="fork")
    assert len(list(other)) == 2  # torch's handler is installed now, and raises wherever the process is

    reader, _ = open_reader(shards(tmp_path / "whole", CRASHING), LANES, window=5, size=8)
    stream = Stream(reader, BUDGET, LaneShare(LANES), 1).batches(0)
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    wait([worker.sentinel])
    while Path(f"/proc/{worker.pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)  # the signal arrives with the process's end
    with pytest.raises(RuntimeError, match="killed by signal"):
        next(stream)


def test_only_a_signal_is_a_crash():
    assert crashes(lambda: os.kill(os.getpid(), signal.SIGABRT))
    assert not crashes(lambda: None)
    assert not crashes(lambda: int("x"))
    assert not crashes(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_process_that_may_crash_prints_no_traceback():
    """Else each sample that crashes a decoder would fill the log, or the output of pytest."""
    assert faulthandler.is_enabled()
    assert not crashes(lambda: faulthandler.is_enabled() and os.kill(os.getpid(), signal.SIGABRT))


class Torn:
    """The chunks after a worker was killed while it handed one over: bytes of another worker follow."""

    def __init__(self, *workers: multiprocessing.Process) -> None:
        self._workers = workers

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise pickle.UnpicklingError("invalid load key")


def test_half_a_chunk_of_a_killed_worker_counts_as_a_kill(tmp_path):
    reader, _ = open_reader(shards(tmp_path / "set", BROKEN), LANES, window=5, size=8)
    stream = Stream(reader, BUDGET, LaneShare(LANES), 1)
    loader = _Loader(stream, 0)
    loader.close()
    worker = multiprocessing.Process(target=time.sleep, args=(600,))
    worker.start()
    loader._chunks = Torn(worker)
    worker.kill()
    with pytest.raises(
        RuntimeError, match=rf"DataLoader worker \(pid {worker.pid}\) is killed by signal: Killed"
    ):
        loader.read(BUDGET.step_at(0))
