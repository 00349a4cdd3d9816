"""fairscale's OSS: the moments of the optimizer in one share per process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.inputs import Inputs
from flipscale.sharding.optimizer import (
    build_optimizer,
    optimizer_kind,
    reset_moments,
    set_lr,
    set_updates,
    skip_unless,
    updates,
)
from flipscale.sharding.wrapping import Autocast, ensure_process_group


class FairscaleOssModel:
    """The strategy `fairscale_oss`: one process owns the moments and the reduced gradient of a parameter.

    Between the backward and the update the other processes hold gradients that were never reduced, so that
    only the owner's are read here.

    Args:
        model: The model with its weights.
        sharding: The `sharding` block of the job.
        optimizer: The `optimizer` block of the job.
        world: The processes of the run.
    """

    def __init__(self, model: FLIP, sharding: Sharding, optimizer: Optimizer, world: World) -> None:
        ensure_process_group(world)
        from fairscale.nn.data_parallel import ShardedDataParallel
        from fairscale.optim.oss import OSS

        self._leads = world.leads
        self._device = world.device
        model = model.to(world.device)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

        self._moments = optimizer_kind(optimizer).moments
        groups = build_optimizer(self._parameters.items(), optimizer).param_groups
        self._optimizer = OSS(groups, optim=torch.optim.AdamW)
        reset_moments(self._optimizer.optim, self._moments)
        self._owned = [p for group in self._optimizer.optim.param_groups for p in group["params"]]

        with _without_log_messages():
            self._wrapped = ShardedDataParallel(
                Autocast(model, world.device, enabled=sharding.precision == "bf16"),
                self._optimizer,
                broadcast_buffers=False,
                sync_models_at_startup=False,  # the same seed, or the same checkpoint, made them
                auto_refresh_trainable=False,
            )
        # Otherwise it waits for the first forward, which may be without a graph.
        self._wrapped.refresh_trainable()

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Run FLIP.forward in the precision of the job."""
        return self._wrapped(inputs, reconstruct=reconstruct)

    @contextmanager
    def micro_step(self, last: bool) -> Generator[None]:
        """Reduce gradients in the last micro-batch only."""
        if last:
            yield
            return

        with self._wrapped.no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the 0-d loss."""
        loss.backward()

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Return the norm of the whole gradient, and clip it to `max_norm` if there is one."""
        # Not OSS.clip_grad_norm: it waits for the device, and it always clips.
        norm = torch.nn.utils.get_total_norm(self._owned_gradients())
        # A process that owns no parameter has a zero on the CPU, which would go to another backend.
        squared = norm.to(self._device).square()
        dist.all_reduce(squared)
        norm = squared.sqrt()
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._owned, max_norm, norm)
        return norm

    def _owned_gradients(self) -> list[Tensor]:
        return [p.grad for p in self._owned if p.grad is not None]

    def update(self, lr: float, finite: Tensor) -> None:
        """Apply the gradients unless `finite` (0-d bool) is false, and clear them."""
        optimizer = self._optimizer.optim
        set_lr(optimizer, lr)
        skip_unless(optimizer, finite)
        # Not OSS.step: it waits for the device before it sends the weights.
        optimizer.step()
        self._send_weights()
        # Not the optimizer's zero_grad: it would separate the gradients from the wrapper's reduction buffers.
        self._wrapped.zero_grad()

    def _send_weights(self) -> None:
        """Send the weights of every owner to all processes. On a GPU this follows the update in its queue."""
        works = [
            dist.broadcast(bucket.buffer, src=owner, async_op=True)
            for buckets in self._optimizer.buckets.values()
            for owner, bucket in buckets.items()
        ]
        for work in works:
            assert work is not None
            work.wait()

    def reset_optimizer(self) -> None:
        """Set the moments to zero and restart the bias correction."""
        reset_moments(self._optimizer.optim, self._moments)

    def updates(self) -> int:
        """Return the number of updates since the optimizer was last fresh."""
        return updates(self._optimizer.optim)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights in the first process, and in each process the moments that it owns."""
        if self._leads:
            yield from self._weights().items()
        yield from self._owned_moments().items()

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Load the weights in every process, and the moments in the process that owns them."""
        fill(self._weights() | self._owned_moments())
        set_updates(self._optimizer.optim, updates)

    def release(self) -> None:
        """Do nothing: fairscale keeps no reference to the model."""

    def _weights(self) -> dict[str, Tensor]:
        return {f"model.{name}": parameter.detach() for name, parameter in self._parameters.items()}

    def _owned_moments(self) -> dict[str, Tensor]:
        states = self._optimizer.optim.state
        owned = [(name, states[p]) for name, p in self._parameters.items() if p in states]
        return {f"{kind}.{name}": state[kind] for name, state in owned for kind in self._moments}


@contextmanager
def _without_log_messages() -> Generator[None]:
    """Suppress the sizes that fairscale logs to the root logger without a name."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    yield
    logging.disable(before)
