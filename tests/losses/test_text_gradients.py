"""The sums of text gradients over ranks run while the next block is computed: their order, and their memory.

The other ranks are torch's fake ones, which send nothing: numbers have no meaning here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.live_bytes import LiveBytes
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from flipscale.distributed import ranks
from flipscale.distributed.ranks import Pending, Ranks
from flipscale.losses import tiles
from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss

SIZE, BATCH, WIDTH = 4, 8, 16
COLUMNS = 8  # 2 texts of each rank, thus 4 blocks
BLOCK_BYTES = COLUMNS * WIDTH * 4


def sigmoid(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    return sigmoid_loss(images, texts, scale, torch.tensor(-2.0), tile=4)


def contrastive(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    return contrastive_loss(images, texts, scale, tile=4)


LOSSES = [contrastive, sigmoid]


@pytest.fixture(autouse=True)
def _second_of_four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tiles, "_COLUMNS_ELSEWHERE", COLUMNS)
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=SIZE)
    yield
    dist.destroy_process_group()


def differentiate(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    images, texts = (torch.ones(BATCH, WIDTH, requires_grad=True) for _ in range(2))
    loss(images, texts, torch.tensor(2.0)).backward()


class Watched:
    """A collective that notes when it starts and when it is waited for."""

    def __init__(self, collective: Any, events: list[str]) -> None:
        self._collective = collective
        self._events = events
        self._started = 0

    def __call__(self, *args: Any, async_op: bool = False, **options: Any) -> Any:
        number = self._started
        self._started += 1
        self._events.append(f"start {number}")
        work = self._collective(*args, async_op=async_op, **options)
        if not async_op:
            self._events.append(f"wait {number}")
            return None

        class Work:
            def wait(other) -> None:
                self._events.append(f"wait {number}")
                work.wait()

        return Work()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_sum_runs_while_the_next_block_is_computed(
    loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(ranks, "_reduce_scatter", Watched(ranks._reduce_scatter, events))
    blocks = tiles.LogitTiles.blocks

    def watched_blocks(own: tiles.LogitTiles) -> Iterator[tiles.ColumnBlock]:
        for number, block in enumerate(blocks(own)):
            events.append(f"block {number}")
            yield block

    monkeypatch.setattr(tiles.LogitTiles, "blocks", watched_blocks)

    differentiate(loss)
    assert events[-12:] == [  # before these, the blocks of the contrastive loss's forward
        *("block 0", "start 0"),
        *("block 1", "start 1", "wait 0"),
        *("block 2", "start 2", "wait 1"),
        *("block 3", "start 3", "wait 2"),
        "wait 3",
    ]


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_grows_by_one_block_at_most(
    loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    differentiate(loss)  # what is made once
    with LiveBytes() as overlapped:
        differentiate(loss)

    start = Ranks.start_scatter_sum
    monkeypatch.setattr(Ranks, "start_scatter_sum", lambda own, values: Pending(start(own, values).wait()))
    with LiveBytes() as blocking:
        differentiate(loss)
    assert overlapped.peak <= blocking.peak + BLOCK_BYTES
