"""What training a probe and fine-tuning have in common: the learning rate, and a line an epoch."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.third_party import import_timm
from flipscale.transfer.augmented_batches import Passes

_log = logging.getLogger(__name__)

_LR_UNIT = 256  # images that base learning rates are for


def scaled(base_lr: float, passes: Passes) -> float:
    """The peak learning rate, by the linear rule."""
    return base_lr * passes.batch_size / _LR_UNIT


class Cosine:
    """Linear warm-up from 0, then half a cosine down to 0; parameter groups may have an `lr_scale`."""

    def __init__(self, optimizer: torch.optim.Optimizer, peak: float, steps: int, warmup: float) -> None:
        """`warmup` is the share of `steps` that the warm-up takes."""
        for group in optimizer.param_groups:
            group["lr"] = peak
        warm = round(warmup * steps)
        self._schedule = import_timm("timm.scheduler").CosineLRScheduler(
            optimizer,
            t_initial=max(1, steps - warm),
            warmup_t=warm,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def at(self, step: int) -> None:
        """Set the rates of the step, counted from 0."""
        self._schedule.step_update(step)


class EpochLog:
    """One line an epoch, from the leading process."""

    def __init__(self, passes: Passes, steps: int, world: World) -> None:
        """`steps` are those of an epoch."""
        self._passes, self._steps, self._world = passes, steps, world
        self._restart()

    def add(self, step: int, loss: Tensor) -> None:
        """Note the loss of a step, counted from 0 over all epochs.

        Raises UserError, at the end of an epoch, where the losses were not finite.
        """
        self._losses.append(loss)
        if (step + 1) % self._steps:
            return
        epoch = (step + 1) // self._steps
        mean = torch.stack(self._losses).mean().item()
        if not all(self._world.gather(math.isfinite(mean))):  # so that every process raises
            raise UserError(
                f"the loss is {mean} in epoch {epoch}: it diverged; give a smaller --base-lr, "
                "or an earlier checkpoint"
            )
        if self._world.leads:
            speed = self._steps * self._passes.batch_size / (time.perf_counter() - self._started)
            _log.info(
                "epoch %d of %d: loss %.4f, %s images/s", epoch, self._passes.epochs, mean, f"{speed:,.0f}"
            )
        self._restart()

    def _restart(self) -> None:
        self._losses: list[Tensor] = []
        self._started = time.perf_counter()
