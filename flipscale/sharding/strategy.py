"""The protocol between the trainer and the library that spreads the model over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from flipscale.models.flip import Features
from flipscale.models.inputs import Inputs


class ShardedModel(Protocol):
    """A sharded model and its optimizer. Gradients are averaged over all processes before they are applied.

    All processes call every method together, with the same arguments except for inputs and losses.
    """

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Run FLIP.forward in the precision of the job."""
        ...

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Return a context for forward and backward of one micro-batch.

        Args:
            last: Whether it is the last micro-batch of the step. Gradients are reduced over processes there.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the 0-d loss; called inside `micro_step`."""
        ...

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Return the norm of the whole gradient: 0-d, a plain tensor, the same on every process.

        Args:
            max_norm: Clip the gradient to this norm; None to leave it as it is.
        """
        ...

    def update(self, lr: float, finite: Tensor) -> None:
        """Apply the gradients, and clear them.

        Args:
            lr: The learning rate.
            finite: 0-d bool on the device; if it is false, weights and optimizer stay as they are.
        """
        ...

    def reset_optimizer(self) -> None:
        """Set the moments to zero and restart the bias correction."""
        ...

    def updates(self) -> int:
        """Return the number of updates since the optimizer was last fresh."""
        ...

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the canonical state for a checkpoint: names, and full tensors or DTensors.

        The names are model.NAME and, for each moment of the optimizer, such as exp_avg.NAME and
        exp_avg_sq.NAME of AdamW. The dtype is fp32, or fp64 in jobs of that precision. All processes read
        the iterator to its end, and one may yield what others leave out. A strategy that must gather its
        shares has one whole parameter at a time.
        """
        ...

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Load a checkpoint.

        Args:
            fill: Writes the checkpoint into tensors that are named as those of `state()`.
            updates: The number of updates of the optimizer when the checkpoint was made.
        """
        ...

    def release(self) -> None:
        """Remove the model from the process-wide state of its library, so that it can be freed.

        No other method is called afterwards.
        """
        ...
