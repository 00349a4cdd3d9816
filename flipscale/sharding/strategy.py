"""The protocol between the trainer and whatever spreads the model over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from flipscale.models.flip import Features
from flipscale.models.inputs import Inputs


class ShardedModel(Protocol):
    """A model with its optimizer. The mean over processes of their gradients is the gradient applied."""

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """FLIP.forward in the job's precision."""
        ...

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Wraps forward and backward of one micro-batch; gradients are reduced over processes in the last."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the 0-d `loss`, inside `micro_step`."""
        ...

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Norm (0-d, a plain tensor, the same on every process) of the whole gradient; clips it to `max_norm`
        where given."""
        ...

    def update(self, lr: float, finite: Tensor) -> None:
        """Apply the gradients, or leave all state as it is where `finite` (0-d bool) is false; clear them."""
        ...

    def reset_optimizer(self) -> None:
        """Empty the moments and restart the bias correction."""
        ...

    def updates(self) -> int:
        """Updates since the optimizer was last fresh."""
        ...

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The canonical state for a checkpoint: model.NAME, exp_avg.NAME, exp_avg_sq.NAME in fp32 (fp64 jobs:
        fp64), full tensors or DTensors. All processes read it to its end, and one may give what others leave
        out. A strategy that must gather its shares has one whole parameter at a time."""
        ...

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Take over a checkpoint made after `updates` updates: `fill` writes it into tensors named as those
        of `state()`; all processes call it."""
        ...

    def release(self) -> None:
        """Take the model out of what its library keeps for the whole process, so that it can be freed.
        Nothing else is called afterwards."""
        ...
