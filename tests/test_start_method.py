"""Pools and loader workers are forked, whatever the default start method is: forkserver on Python 3.14."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.classifier_samples import labelled_tar
from support.readers import MAX_PIXELS, hasty, open_reader
from support.shards import write_shards

from flipscale.budget import Budget
from flipscale.config import Phase
from flipscale.data.checks.scan import Checking, check_shards
from flipscale.data.order.mixture import Mixture
from flipscale.data.samples.stream import LaneShare, Stream
from flipscale.data.shards.indexing import build_index
from flipscale.distributed.world import World
from flipscale.runs.expected_order import expected_order, sample_keys
from flipscale.transfer.augmented_batches import AugmentedBatches
from flipscale.transfer.labelled_images import labelled_images
from flipscale.transfer.passes import Passes


@pytest.fixture(autouse=True)
def _server_of_forks() -> Iterator[None]:
    """Let processes be children of a server, as on Python 3.14."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_shards_are_indexed_and_checked(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [6, 7, 8])
    index = build_index(pattern, tmp_path / "index", workers=2)
    assert index.counts.tolist() == [6, 7, 8]
    reports = check_shards([shard.path for shard in index.shards], Checking(MAX_PIXELS), workers=2)
    assert [report.samples for report in reports] == [6, 7, 8]


def test_loader_workers_read_a_batch(tmp_path: Path) -> None:
    reader, _ = open_reader(write_shards(tmp_path, [16]), 4, size=8, storage=hasty())
    budget = Budget.of([Phase(name="a", samples=16, mask_ratio=0.0, batch_size=16, base_lr=1e-3)], 4)
    batches = Stream(reader, budget, LaneShare(4), workers=1).batches(0)
    assert next(batches).positions.tolist() == list(range(16))
    batches.close()


def test_views_of_a_classifier_are_made(tmp_path: Path) -> None:
    images = labelled_images(labelled_tar(tmp_path / "a.tar", 2, 4))
    world = World(0, 1, 0, 1, torch.device("cpu"))
    views = AugmentedBatches(images, Passes(epochs=1, batch_size=8, micro_batch=8), 16, world, workers=1)
    pixels, _ = next(next(views.pieces()))
    assert len(pixels) == 8


def test_order_of_a_run_is_recomputed() -> None:
    order = Mixture([100, 60], 8, 16, 0)
    whole = expected_order(order, sample_keys([(0, 7)]), 0, 160, workers=2)
    assert whole == expected_order(order, sample_keys([(0, 7)]), 0, 160)
