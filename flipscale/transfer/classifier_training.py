"""What the LARS probe and fine-tuning share: the learning rate, and one line of log per epoch."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.third_party import import_timm
from flipscale.transfer.passes import Passes

_log = logging.getLogger(__name__)

_LR_UNIT = 256  # images; base learning rates are given for batches of this size


def peak_learning_rate(base_lr: float, passes: Passes) -> float:
    """Return the peak learning rate, by the linear rule: base_lr x batch_size / 256."""
    return base_lr * passes.batch_size / _LR_UNIT


class CosineSchedule:
    """A learning rate that rises linearly from 0 and then falls to 0 as half a cosine.

    Parameter groups may scale it by an `lr_scale` of their own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, peak: float, steps: int, warmup: float) -> None:
        """Set the peak rate in every group.

        Args:
            optimizer: The optimizer whose rates are set.
            peak: Highest rate, at the end of the warm-up.
            steps: Optimizer steps of the whole training.
            warmup: Share of `steps` that the warm-up takes.
        """
        for group in optimizer.param_groups:
            group["lr"] = peak

        warmup_steps = round(warmup * steps)
        self._schedule = import_timm("timm.scheduler").CosineLRScheduler(
            optimizer,
            t_initial=max(1, steps - warmup_steps),
            warmup_t=warmup_steps,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def set_step(self, step: int) -> None:
        """Set the rates of a step, counted from 0."""
        self._schedule.step_update(step)


class EpochLog:
    """The mean loss and the speed of each epoch, logged by the leading process."""

    def __init__(self, passes: Passes, steps: int, world: World) -> None:
        """Start the clock of the first epoch.

        Args:
            passes: Epochs and batch size.
            steps: Optimizer steps per epoch.
            world: The processes; all of them add their losses.
        """
        self._passes = passes
        self._steps = steps
        self._world = world
        self._restart()

    def add(self, step: int, loss: Tensor) -> None:
        """Note the loss of a step, counted from 0 over all epochs.

        Raises:
            UserError: At the end of an epoch, on every process, if a loss of any process was not finite.
        """
        self._losses.append(loss)
        if (step + 1) % self._steps:
            return

        epoch = (step + 1) // self._steps
        mean = torch.stack(self._losses).mean().item()
        # Ask all processes: if only some of them raised, the others would wait for them.
        if not all(self._world.gather(math.isfinite(mean))):
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
