"""DistributedDataParallel: a whole copy of model and optimizer in every process."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.inputs import Inputs
from flipscale.sharding.in_place_optimizer import InPlaceOptimizer


class _ReducedModel(nn.Module):
    """The model as DDP wraps it: a call without inputs gives every parameter a gradient of zero.

    Args:
        model: The model.
    """

    def __init__(self, model: FLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs | None, *, reconstruct: bool = False) -> Features | Tensor:
        """Run FLIP.forward; without inputs, return zero as a function of all parameters."""
        if inputs is not None:
            return self.model(inputs, reconstruct=reconstruct)

        # In the order of the forward, so that the gradients come in that of the backward.
        named = list(self.model.named_parameters())
        named.sort(key=lambda pair: not pair[0].startswith("visual."))
        first = [parameter.flatten()[:1].sum() for _, parameter in named]
        return 0.0 * torch.stack(first).sum()


def _reduced_copies(model: FLIP, device: torch.device) -> DistributedDataParallel:
    """Return the model with its gradients averaged over all processes, in buckets that stay as they are.

    DDP fills new buckets after the first backward of a process, in the order in which gradients came. Sums of
    more than two processes depend on the buckets, so that a resumed run would differ from one that was not
    stopped. A backward of zeros comes before the first step.
    """
    with warnings.catch_warnings():
        # torch 2.13 renames the argument; older supported versions do not know the new name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped = DistributedDataParallel(
            _ReducedModel(model),
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    wrapped(None).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return wrapped


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
            self._wrapped = _reduced_copies(self._module, world.device)

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
