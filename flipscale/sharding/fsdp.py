"""FSDP2: every process keeps one share of the weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.initialization import initial_value
from flipscale.models.inputs import Inputs
from flipscale.sharding.in_place_optimizer import InPlaceOptimizer
from flipscale.sharding.wrapping import ensure_process_group, write_whole


class FsdpModel(InPlaceOptimizer):
    """The strategies `fsdp` and `hsdp`.

    `fsdp` shards over all processes. `hsdp` shards over groups of `sharding.shard_size` consecutive ranks,
    and every group has a whole copy.

    Every transformer block is a unit; the parameters outside of the blocks are another one. In bf16 the
    weights of the blocks are gathered in bf16, and their gradients are reduced in fp32. The outer unit
    (embeddings, last norms, projections, logit scale) is gathered in fp32, since 8 bits would round the logit
    scale by up to 1.5 %. Both then run under the same autocast as `ddp`.

    The model gets its initial weights parameter by parameter: no process ever holds more than its share and
    one whole parameter.

    Args:
        model: The model on the device "meta".
        sharding: The `sharding` block of the job.
        optimizer: The `optimizer` block of the job.
        seed: The seed of the initial weights.
        world: The processes of the run.
    """

    def __init__(
        self, model: FLIP, sharding: Sharding, optimizer: Optimizer, seed: int, world: World
    ) -> None:
        ensure_process_group(world)
        self._bf16 = sharding.precision == "bf16"
        self._device = world.device
        mesh = _mesh(world, sharding.shard_size)
        self._copies = world.size // mesh.size(mesh.ndim - 1)

        # Cast and shard before there is memory for the weights.
        if sharding.precision == "fp64":
            model.double()
        self._model = model
        _shard_units(model, mesh, self._bf16, sharding.reshard_after_forward)

        model.to_empty(device=world.device)
        _initialize(model, seed)
        super().__init__(dict(model.named_parameters()), optimizer)

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Run FLIP.forward in the precision of the job."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return self._model(inputs, reconstruct=reconstruct)

    @contextmanager
    def micro_step(self, last: bool) -> Generator[None]:
        """Reduce gradients in the last micro-batch only."""
        assert isinstance(self._model, FSDPModule)
        self._model.set_requires_gradient_sync(last)
        yield

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Return the norm of the whole gradient, and clip it to `max_norm` if there is one."""
        # On the shares, with one collective: on DTensors torch would start one for each parameter.
        gradients = [_share(p.grad) for p in self._parameters.values() if p.grad is not None]
        squared = torch.nn.utils.get_total_norm(gradients).double().square()
        # Over all copies: sums of their own could differ by a rounding, and copies that are clipped
        # differently stay different.
        dist.all_reduce(squared)
        norm = (squared / self._copies).sqrt().to(gradients[0].dtype)

        if max_norm is not None:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


def _mesh(world: World, shard_size: int | None) -> DeviceMesh:
    """Return the processes as a mesh (share,), or (copy, share) for HSDP."""
    shape = (world.size,) if shard_size is None else (world.size // shard_size, shard_size)
    names = ("share",) if shard_size is None else ("copy", "share")
    return init_device_mesh(world.device.type, shape, mesh_dim_names=names)


def _shard_units(model: FLIP, mesh: DeviceMesh, bf16: bool, reshard_after_forward: bool) -> None:
    # The residual stream is not cast on its way into a block: as in `ddp`, autocast decides.
    in_bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in (block for transformer in model.transformers for block in transformer.resblocks):
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=reshard_after_forward,
            mp_policy=in_bf16 if bf16 else exact,
        )

    # The backward begins with the outer unit: freeing it after the forward would gain nothing.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=exact)


def _initialize(model: FLIP, seed: int) -> None:
    for name, parameter in model.named_parameters():
        write_whole(parameter, initial_value(name, parameter.shape, model.spec, seed))


def _share(tensor: Tensor) -> Tensor:
    """Return this process's part, a plain tensor in the same memory; it can be empty."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
