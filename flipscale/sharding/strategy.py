"""The protocol between the trainer and the library that spreads the model over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.distributed.tensor import DTensor

from flipscale.distributed.world import World
from flipscale.errors import UserError
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


def restore_finite(
    model: ShardedModel,
    fill: Callable[[dict[str, Tensor]], None],
    updates: int,
    checkpoint: Path,
    world: World,
) -> None:
    """Load a checkpoint as `model.restore` does, and check that its weights are finite numbers.

    Training never saves other ones: it skips an update that is not finite. Files that agree with their
    manifest can hold them nevertheless, if something else wrote both.

    Args:
        model: The model.
        fill: See ShardedModel.restore.
        updates: See ShardedModel.restore.
        checkpoint: The directory of the checkpoint, for the message.
        world: The processes of the run.

    Raises:
        UserError: On every process, if a weight is not a finite number on any of them.
    """
    bad: list[str] = []

    def filled(tensors: dict[str, Tensor]) -> None:
        fill(tensors)
        bad.extend(
            name for name, tensor in tensors.items() if name.startswith("model.") and not finite(tensor)
        )

    # Every process restores to the end before one may fail: the others wait for it in collectives.
    model.restore(filled, updates)
    world.together(lambda: check_finite(bad, checkpoint))


def finite(tensor: Tensor) -> bool:
    """Return whether a tensor, or this process's share of a DTensor, has only finite numbers."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(local.isfinite().all())


def check_finite(bad: list[str], checkpoint: Path) -> None:
    """Raise UserError if tensors of a checkpoint have numbers that are not finite; `bad` names these."""
    if bad:
        raise UserError(
            f"the checkpoint {checkpoint} has numbers that are not finite, the first in {bad[0]}, though its "
            "files are as its manifest says; move it out of its directory to go back to the one before"
        )
