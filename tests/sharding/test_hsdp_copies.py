"""The copies of HSDP stay equal bit by bit, also if their own sums are rounded differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.one_process import SPEC, make_pairs
from support.spawned import spawn
from torch import Tensor
from torch.distributed.tensor import DTensor

from flipscale.config import Loss, Optimizer, Sharding
from flipscale.distributed.ranks import Ranks
from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.sharding.shard import shard
from flipscale.training.gradients import accumulate_gradients

pytestmark = pytest.mark.slow  # it starts 4 processes


def check_copies_stay_equal(rank: int, world_size: int) -> None:
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    sharding = Sharding(strategy="hsdp", shard_size=2)
    model = shard(build_model(SPEC, device="meta"), sharding, Optimizer(), 0, world)

    # gloo adds in one order everywhere. NCCL chooses an order by the wires between the processes, so that the
    # sum within the second copy may be rounded otherwise.
    total_norm = torch.nn.utils.get_total_norm
    if rank >= 2:
        rounded_up: Any = lambda gradients: _rounded_up(total_norm(gradients))  # noqa: E731
        torch.nn.utils.get_total_norm = rounded_up

    for step in range(3):
        accumulate_gradients(model, make_pairs(4 * step + rank, count=2), Loss(), None)
        norm = model.gradient_norm(0.1)
        assert float(norm) > 0.1  # otherwise nothing is clipped
        assert _is_the_same_everywhere(norm)
        model.update(1e-3, torch.isfinite(norm))

    copies: tuple[Any, Any] = dist.new_group([0, 2]), dist.new_group([1, 3])
    for name, tensor in model.state():
        assert isinstance(tensor, DTensor)
        assert _is_the_same_everywhere(tensor.to_local(), copies[rank % 2]), name


def _rounded_up(norm: Tensor) -> Tensor:
    return torch.nextafter(norm, norm + 1)


def _is_the_same_everywhere(tensor: Tensor, group: dist.ProcessGroup | None = None) -> bool:
    every = Ranks.of(group).gather(tensor.flatten())
    return all(torch.equal(other, tensor.flatten()) for other in every)


def test_copies_are_clipped_by_one_norm(tmp_path: Path) -> None:
    spawn(check_copies_stay_equal, 4, tmp_path)
