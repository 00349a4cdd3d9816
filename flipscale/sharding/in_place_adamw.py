"""The optimizer's half of a sharded model whose parameters torch's AdamW updates where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from flipscale.sharding import optimizer as adamw


class InPlaceAdamW:
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

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The canonical state as references: DTensors where each process saves and loads its share."""
        return self._state_of(self._parameters)

    def _state_of(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            parameter = self._parameters[name]
            moments = self._optimizer.state[parameter]
            yield f"model.{name}", parameter.detach()
            yield f"exp_avg.{name}", moments["exp_avg"]
            yield f"exp_avg_sq.{name}", moments["exp_avg_sq"]

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        fill(dict(self._state_of(self._parameters)))
        adamw.set_updates(self._optimizer, updates)

    def release(self) -> None:
        """Nothing holds on to the model."""
