"""The protocol between the trainer and whatever spreads the model over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from flipscale.config import Job
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.sharding.activation_checkpointing import apply_activation_checkpointing


class ShardedModel(Protocol):
    """A model with its optimizer. The mean over processes of their gradients is the gradient applied."""

    def forward(
        self,
        images: Tensor | None = None,
        texts: Tensor | None = None,
        keep: Tensor | None = None,
        keep_tokens: Tensor | None = None,
        *,
        reconstruct: bool = False,
    ) -> Features:
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


def shard(model: FLIP, job: Job, world: World) -> ShardedModel:
    """Prepare `model` and its optimizer for `job.sharding` on the processes of `world`.

    Activation checkpointing comes first, then compilation, then the sharding itself.

    Args:
        model: on the device "meta"; it gets the initial weights of `job.seed`. FSDP makes no more of them
            than a process's share, so that a model may be larger than the memory of any device.
    """
    apply_activation_checkpointing(model, job.sharding.activation_checkpointing)
    if job.sharding.compile:
        for transformer in model.transformers:
            for block in transformer.resblocks:
                block.compile()
    strategy = job.sharding.strategy
    if strategy in ("fsdp", "hsdp"):
        from flipscale.sharding.fsdp import FullySharded

        return FullySharded(model, job, world)
    model.to_empty(device=world.device)
    model.init_weights(job.seed)
    if strategy == "ddp":
        from flipscale.sharding.ddp import DataParallel

        return DataParallel(model, job, world)
    if strategy in ("zero1", "zero2", "zero3"):
        from flipscale.sharding.deepspeed import ZeroSharded

        return ZeroSharded(model, job, world)
    from flipscale.sharding.fairscale import fairscale_sharded

    return fairscale_sharded(model, job, world)
