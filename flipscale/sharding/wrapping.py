"""What several sharding libraries need: a process group, autocast inside their wrappers, silence about names
that torch has changed, and whole tensors handed to the shares of all processes."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.inputs import Inputs


class Autocast(nn.Module):
    """FLIP.forward under bf16 autocast where enabled.

    It is inside the library's wrapper, since DeepSpeed's engine turns off an autocast that surrounds it.
    """

    def __init__(self, model: FLIP, device: torch.device, *, enabled: bool) -> None:
        super().__init__()
        self.model = model
        self.device_type = device.type
        self.enabled = enabled

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled):
            return self.model(inputs, reconstruct=reconstruct)


def ensure_process_group(world: World) -> None:
    """Make a process group of one process where the run has a single one and thus none."""
    if not dist.is_initialized():
        assert world.size == 1
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def ignore_old_names() -> None:
    """Without torch's remarks on the collectives that a library calls, many a step, by their former names."""
    former = r"`torch\.distributed\.\w+` is (deprecated|a private function)"
    warnings.filterwarnings("ignore", former, FutureWarning)


def from_first(tensors: dict[str, Tensor], name: str, shape: torch.Size, world: World) -> Tensor:
    """The first process's fp32 tensor `name`, whole, on every process; `tensors` lets go of it."""
    value = tensors.pop(name).to(world.device) if world.leads else torch.empty(shape, device=world.device)
    dist.broadcast(value, src=0)
    return value


def own_share(value: Tensor, numel: int, world: World) -> Tensor:
    """This process's `numel` elements (1-d) of `value`, which is padded with zeros to a share for each."""
    padded = value.new_zeros(numel * world.size)
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, numel * world.rank, numel)


@torch.no_grad()
def write_whole(tensor: Tensor, whole: Tensor) -> None:
    """Write `whole`, which every process has, into a plain tensor or into this process's share of a DTensor.

    Every process cuts its share from its own copy; nothing is sent.
    """
    if not isinstance(tensor, DTensor):
        tensor.copy_(whole)
        return
    mesh = tensor.device_mesh
    whole = whole.to(mesh.device_type, tensor.dtype)
    shares = distribute_tensor(whole, mesh, tensor.placements, src_data_rank=None)
    tensor.to_local().copy_(shares.to_local())
