"""DistributedDataParallel: a whole copy of model and optimizer in every process."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.inputs import Inputs
from flipscale.sharding.in_place_optimizer import InPlaceOptimizer


class DdpModel(InPlaceOptimizer):
    """The strategy `ddp`: gradients are averaged while the backward runs. One process needs no wrapper.

    Args:
        model: The model with its weights.
        sharding: The `sharding` block of the job.
        optimizer: The `optimizer` block of the job.
        world: The processes of the run.
    """

    def __init__(self, model: FLIP, sharding: Sharding, optimizer: Optimizer, world: World) -> None:
        self._world = world
        self._precision = sharding.precision
        self._device = world.device
        self._module = model.to(world.device)
        if self._precision == "fp64":
            self._module.double()
        super().__init__(dict(self._module.named_parameters()), optimizer)

        self._wrapped = self._module
        if world.size > 1:
            with warnings.catch_warnings():
                # torch 2.13 renames the argument; older supported versions do not know the new name.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._wrapped = DistributedDataParallel(
                    self._module,
                    device_ids=[world.device] if world.device.type == "cuda" else None,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Run FLIP.forward in the precision of the job."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return self._wrapped(inputs, reconstruct=reconstruct)

    @contextmanager
    def micro_step(self, last: bool) -> Generator[None]:
        """Reduce gradients in the last micro-batch only."""
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            yield
            return

        with self._wrapped.no_sync():
            yield

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield this process's part of the names: together, all processes copy and write the state once."""
        return self._state_of(list(self._parameters)[self._world.rank :: self._world.size])

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Return the norm of the whole gradient, and clip it to `max_norm` if there is one."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), max_norm, norm)
        return norm
