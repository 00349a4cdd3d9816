"""DistributedDataParallel: a whole copy of model and optimizer in every process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from flipscale.config import Job
from flipscale.models.flip import FLIP
from flipscale.sharding.strategy import Features
from flipscale.training import optimizer as adamw
from flipscale.world import World


class DataParallel:
    """`ddp`: gradients are averaged while the backward runs. One process needs no wrapper."""

    def __init__(self, model: FLIP, job: Job, world: World) -> None:
        self._precision = job.sharding.precision
        self._module = model.to(world.device)
        if self._precision == "fp64":
            self._module.double()
        self._optimizer = adamw.build_optimizer(self._module.named_parameters(), job.optimizer)
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        self._wrapped = self._module
        if world.size > 1:
            with warnings.catch_warnings():
                # torch 2.13 renames the argument; the new name is unknown to the older supported versions.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._wrapped = DistributedDataParallel(
                    self._module,
                    device_ids=[world.device] if world.device.type == "cuda" else None,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )

    def forward(self, images: Tensor | None, texts: Tensor | None, keep: Tensor | None) -> Features:
        device = self._parameters[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._precision == "bf16"):
            return self._wrapped(images, texts, keep)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            yield
            return
        with self._wrapped.no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, max_norm, norm)
        return norm

    def update(self, lr: float, finite: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        adamw.skip_unless(self._optimizer, finite)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def reset_optimizer(self) -> None:
        adamw.reset_moments(self._optimizer)

    def updates(self) -> int:
        return adamw.updates(self._optimizer)

    def state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            moments = self._optimizer.state[parameter]
            tensors[f"model.{name}"] = parameter.detach()
            tensors[f"exp_avg.{name}"] = moments["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
        return tensors

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        fill(self.state())
        adamw.set_updates(self._optimizer, updates)
