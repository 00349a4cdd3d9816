"""One rank of a job of any size: torch's fake process group, whose collectives do nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from flipscale.distributed.world import World


@contextmanager
def fake_world(
    rank: int, size: int, ranks_per_node: int, device: torch.device, strategy: str
) -> Generator[World]:
    """Join a process group of `size` ranks of which no other exists.

    Args:
        rank: The rank that this process is.
        size: The ranks of the job.
        ranks_per_node: The ranks of a node.
        device: The device of the rank.
        strategy: The strategy of the job; DeepSpeed needs more than the group.
    """
    local = min(size, ranks_per_node)
    world = World(rank, size, rank % local, local, device)
    if strategy.startswith("zero"):
        _prepare_deepspeed(world)

    _let_fake_tensors_communicate()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield world
    finally:
        dist.destroy_process_group()


def _let_fake_tensors_communicate() -> None:
    """Register what collectives return for fake tensors; torch 2.9 leaves that to a module of its tools."""
    known: Any = torch._C._dispatch_has_kernel_for_dispatch_key
    if not known("c10d::_allgather_base_", "Meta"):
        importlib.import_module("torch.distributed._tools.fake_collectives")


def _prepare_deepspeed(world: World) -> None:
    """Let DeepSpeed take the fake device, and not compare numbers with ranks that do not exist."""
    os.environ["DS_ACCELERATOR"] = world.device.type
    os.environ["LOCAL_RANK"] = str(world.local_rank)
    import deepspeed.runtime.zero.parameter_offload as offload
    import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator
    import deepspeed.runtime.zero.utils as utils

    for module in (offload, coordinator, utils):
        for name in ("assert_ints_same_as_other_ranks", "assert_lst_len_same_as_other_ranks"):
            if hasattr(module, name):
                setattr(module, name, _agrees)


def _agrees(*args: object, **settings: object) -> None:
    """Do nothing, since this process is the only rank that exists."""
