"""One optimizer step, and the count of the steps that were skipped."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.data.samples.stream import Batch
from flipscale.distributed.world import World
from flipscale.errors import RunError
from flipscale.models.inputs import Inputs
from flipscale.progress import Progress
from flipscale.sharding.compilation import CompilationCheck
from flipscale.sharding.strategy import ShardedModel
from flipscale.training.gradients import accumulate_gradients
from flipscale.training.stage import Stage

MAX_SKIPPED_IN_A_ROW = 20


class Updater:
    """Runs the optimizer steps of a segment.

    A step whose loss or gradient is not finite leaves model and optimizer as they are. The counts of such
    steps stay on the device, so that a step never waits for the host.

    Args:
        job: The job.
        budget: The budget of the job.
        padding_id: Token id of the tokenizer's padding.
        world: The processes of the run.
        progress: Where training begins.
    """

    def __init__(self, job: Job, budget: Budget, padding_id: int, world: World, progress: Progress) -> None:
        self._job = job
        self._budget = budget
        self._padding_id = padding_id
        self._device = world.device
        # Skipped steps, and those skipped in a row.
        self._skips = torch.tensor([progress.skipped_steps, 0], device=world.device)
        self._compilation = CompilationCheck(wanted=job.sharding.compile and world.leads)

    def update(self, stage: Stage, batch: Batch) -> dict[str, Tensor]:
        """Run one optimizer step; all processes call it together.

        Args:
            stage: The model of the phase of the batch.
            batch: The batch.

        Returns:
            The scalars to log, as 0-d tensors on the device (no host sync).
        """
        step = batch.step
        model = stage.model
        span = self._budget.spans[step.phase]
        if step.start == span.start and span.phase.fresh_optimizer:
            model.reset_optimizer()

        pairs = Inputs(self._moved(batch.images), self._moved(batch.tokens), lengths=batch.lengths)
        inputs = pairs.masked(
            self._moved(batch.positions),
            span.phase,
            stage.spec,
            padding_id=self._padding_id,
            seed=self._job.seed,
        )
        scalars = accumulate_gradients(
            model, inputs, self._job.loss, self._job.sharding.micro_batch_in(span.phase)
        )
        norm = model.gradient_norm(self._job.optimizer.clip_grad_norm)
        self._compilation.after_step()

        finite = torch.isfinite(scalars["loss"]) & torch.isfinite(norm)
        model.update(step.lr, finite)
        self._skips[0] += ~finite
        self._skips[1] = torch.where(finite, 0, self._skips[1] + 1)

        return {**scalars, "grad_norm": norm, "skipped_steps": self._skips[0]}

    def counted(self, progress: Progress, model: ShardedModel) -> Progress:
        """Return the progress with the steps that were skipped and the updates of the optimizer.

        The host waits for the device.
        """
        skipped = int(self._skips[0].item())
        return replace(progress, skipped_steps=skipped, optimizer_steps=model.updates())

    def check_skips(self, samples_seen: int) -> None:
        """End the run if its steps keep failing.

        The host waits for the device. Call it only after another wait, such as that for logged scalars.

        Raises:
            RunError: If the last MAX_SKIPPED_IN_A_ROW steps were skipped.
        """
        in_a_row = int(self._skips[1].item())
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RunError(
                f"the loss or its gradient was not finite for the last {in_a_row} steps, up to "
                f"{samples_seen} samples; lower base_lr, lengthen warmup or set "
                "optimizer.clip_grad_norm, and continue from the last checkpoint in a new run",
                kind="non_finite",
            )

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)
