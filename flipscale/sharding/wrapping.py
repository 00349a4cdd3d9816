"""Parts that several sharding strategies need.

A process group, autocast inside a library's wrapper, silence about names that torch has changed, and whole
tensors that are handed to the shares of all processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from flipscale.distributed.quiet_start import native_output_to_stderr
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.inputs import Inputs


class Autocast(nn.Module):
    """FLIP.forward under bf16 autocast, if it is enabled.

    It is inside the library's wrapper, since DeepSpeed's engine turns off an autocast that surrounds it.

    Args:
        model: The model.
        device: The device of the model.
        enabled: Whether matrix products are in bf16.
    """

    def __init__(self, model: FLIP, device: torch.device, *, enabled: bool) -> None:
        super().__init__()
        self.model = model
        self.device_type = device.type
        self.enabled = enabled

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Run FLIP.forward."""
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled):
            return self.model(inputs, reconstruct=reconstruct)


def ensure_process_group(world: World) -> None:
    """Make a process group of one process if the run has a single process, and thus no group yet."""
    if not dist.is_initialized():
        assert world.size == 1
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        store = dist.HashStore()
        with native_output_to_stderr():
            dist.init_process_group(backend, store=store, rank=0, world_size=1)


def ignore_old_names() -> None:
    """Silence torch's warnings about the old names of collectives, which libraries call in each step."""
    former = r"`torch\.distributed\.\w+` is (deprecated|a private function)"
    warnings.filterwarnings("ignore", former, FutureWarning)


def load_whole(
    fill: Callable[[dict[str, Tensor]], None],
    shapes: Mapping[str, torch.Size],
    moments: Sequence[str],
    world: World,
) -> Iterator[tuple[str, str, Tensor]]:
    """Load a checkpoint in the first process, and hand it to all processes, one tensor at a time.

    All processes iterate together to the end.

    Args:
        fill: Writes the checkpoint into tensors by name; see ShardedModel.restore.
        shapes: Shapes of the whole parameters by their names.
        moments: Names of the moments of the optimizer.
        world: The processes of the run.

    Yields:
        The name of the parameter, "model" or the name of a moment, and the whole fp32 tensor on the device.
        The weights of a parameter come first, then its moments.
    """
    kinds = ("model", *moments)
    tensors: dict[str, Tensor] = {}
    if world.leads:
        for name, shape in shapes.items():
            tensors |= {f"{kind}.{name}": torch.empty(shape) for kind in kinds}
    fill(tensors)

    for name, shape in shapes.items():
        for kind in kinds:
            yield name, kind, _from_first(tensors, f"{kind}.{name}", shape, world)


def own_share(value: Tensor, numel: int, world: World) -> Tensor:
    """Return the share of this process of a tensor that is cut without regard to its shape.

    Args:
        value: The whole tensor. It is padded with zeros to equal shares.
        numel: The number of elements of a share.
        world: The processes of the run.

    Returns:
        1-d tensor of `numel` elements.
    """
    padded = value.new_zeros(numel * world.size)
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, numel * world.rank, numel)


@torch.no_grad()
def write_whole(tensor: Tensor, whole: Tensor) -> None:
    """Write a whole tensor into a plain tensor, or into this process's share of a DTensor.

    Every process cuts its share from its own copy; nothing is sent.

    Args:
        tensor: The tensor to write into.
        whole: The whole tensor, the same on every process.
    """
    if not isinstance(tensor, DTensor):
        tensor.copy_(whole)
        return

    mesh = tensor.device_mesh
    whole = whole.to(mesh.device_type, tensor.dtype)
    shares = distribute_tensor(whole, mesh, tensor.placements, src_data_rank=None)
    tensor.to_local().copy_(shares.to_local())


def _from_first(tensors: dict[str, Tensor], name: str, shape: torch.Size, world: World) -> Tensor:
    """Return the first process's tensor on every process, and drop it from `tensors`."""
    value = tensors.pop(name).to(world.device) if world.leads else torch.empty(shape, device=world.device)
    dist.broadcast(value, src=0)
    return value
