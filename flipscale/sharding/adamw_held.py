"""The optimizer's half of a sharded model whose parameters torch's AdamW updates where they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flipscale.training import optimizer as adamw


class AdamWHeld:
    """update to restore of ShardedModel, for weights and moments that are plain tensors or DTensors.

    Args:
        parameters: by their canonical names.
        optimizer: made by `build_optimizer` of these.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW) -> None:
        self._parameters = parameters
        self._optimizer = optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()

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
        """The canonical state as references: DTensors where each process saves and loads its share."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state[parameter]
            tensors[f"model.{name}"] = parameter.detach()
            tensors[f"exp_avg.{name}"] = moments["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
        return tensors

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        fill(self.state())
        adamw.set_updates(self._optimizer, updates)
