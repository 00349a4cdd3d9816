"""Sums over real processes that are under way while these processes continue."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from support.spawned import spawn
from support.time_limits import wait_until

from flipscale.distributed.world import World
from flipscale.runs.failures import failure_of


def world_of(rank: int, size: int) -> World:
    return World(rank, size, rank, size, torch.device("cpu"))


def check_order(rank: int, world_size: int) -> None:
    world = world_of(rank, world_size)
    first = world.start_sum([rank + 1, 2**62, -1])
    second = world.start_sum([10 * rank])
    assert world.gather(rank) == [0, 1]
    assert world.sum([5]) == [10]
    assert second.wait() == [10]
    assert first.wait() == [3, -(2**63), -2]  # modulo 2**64


def test_sums_under_way_and_other_collectives_keep_their_order(tmp_path: Path) -> None:
    spawn(check_order, 2, tmp_path)


def test_one_process_has_its_own_numbers() -> None:
    assert world_of(0, 1).start_sum([3, -4]).wait() == [3, -4]


def check_lost_peer(rank: int, world_size: int, started: Path) -> None:
    world = world_of(rank, world_size)
    world.gather(None)  # connects the processes
    if rank == 1:
        wait_until(started.exists)
        os._exit(0)

    pending = world.start_sum([1])
    started.touch()
    with pytest.raises(RuntimeError) as lost:
        pending.wait()
    assert failure_of(lost.value).kind == "lost_process"


def test_lost_process_is_recognised_when_the_sum_is_awaited(tmp_path: Path) -> None:
    spawn(partial(check_lost_peer, started=tmp_path / "started"), 2, tmp_path)
