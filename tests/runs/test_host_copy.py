"""The copy from which a save is written has memory of its own, which is allocated once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from flipscale.distributed.world import World, leave_world
from flipscale.runs.host_copy import HostCopy
from flipscale.sharding.wrapping import ensure_process_group


@pytest.fixture
def single() -> Iterator[World]:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    ensure_process_group(world)
    yield world
    leave_world()


def local_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def test_memory_is_allocated_once_and_is_not_the_models(single: World) -> None:
    mesh = init_device_mesh("cpu", (1,))
    state = {"plain": torch.rand(5, 3), "shared": distribute_tensor(torch.rand(4, 2), mesh, [Shard(0)])}
    copy = HostCopy()
    first = dict(copy.take(state.items()))
    places = {name: local_part(tensor).data_ptr() for name, tensor in first.items()}
    assert all(local_part(state[name]).data_ptr() != place for name, place in places.items())
    for round_ in range(2):
        before = {name: local_part(tensor).clone() for name, tensor in state.items()}
        again = copy.take(iter(state.items()))
        assert {name: local_part(tensor).data_ptr() for name, tensor in again.items()} == places
        for tensor in state.values():
            local_part(tensor).add_(round_ + 1.0)
        assert all(torch.equal(local_part(tensor), before[name]) for name, tensor in again.items())
        shared = again["shared"]
        assert isinstance(shared, DTensor)
        assert shared.placements == (Shard(0),)


def test_copy_holds_only_the_tensors_of_the_state() -> None:
    copy = HostCopy()
    copy.take([("a", torch.ones(2)), ("b", torch.ones(2))])
    assert list(copy.take([("b", torch.zeros(2))])) == ["b"]
