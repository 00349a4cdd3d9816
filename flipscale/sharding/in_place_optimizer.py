"""The optimizer's half of a sharded model, for strategies that leave the parameters to torch's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from flipscale.config import Optimizer
from flipscale.sharding.optimizer import (
    build_optimizer,
    optimizer_kind,
    reset_moments,
    set_lr,
    set_updates,
    skip_unless,
    updates,
)


class InPlaceOptimizer:
    """The methods from `update` to `release` of ShardedModel, for plain tensors or DTensors.

    Args:
        parameters: The parameters by their canonical names.
        settings: The `optimizer` block of the job.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], settings: Optimizer) -> None:
        self._parameters = parameters
        self._moments = optimizer_kind(settings).moments
        self._optimizer = build_optimizer(parameters.items(), settings)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the 0-d loss."""
        torch.autograd.backward(loss)

    def update(self, lr: float, finite: Tensor) -> None:
        """Apply the gradients unless `finite` (0-d bool) is false, and clear them."""
        set_lr(self._optimizer, lr)
        skip_unless(self._optimizer, finite)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def reset_optimizer(self) -> None:
        """Set the moments to zero and restart the bias correction."""
        reset_moments(self._optimizer, self._moments)

    def updates(self) -> int:
        """Return the number of updates since the optimizer was last fresh."""
        return updates(self._optimizer)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the canonical state as references; of DTensors each process saves and loads its share."""
        return self._state_of(self._parameters)

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Load a checkpoint in place, without a copy; see ShardedModel."""
        fill(dict(self._state_of(self._parameters)))
        set_updates(self._optimizer, updates)

    def release(self) -> None:
        """Do nothing: no library keeps a reference to the model."""

    def _state_of(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            parameter = self._parameters[name]
            state = self._optimizer.state[parameter]
            yield f"model.{name}", parameter.detach()
            for moment in self._moments:
                yield f"{moment}.{name}", state[moment]
