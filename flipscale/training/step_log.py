"""The log of a run's steps: lines of metrics, and the display."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import cast

import torch
from torch import Tensor

from flipscale.budget import Budget, Step, crosses_multiple
from flipscale.config import Logging
from flipscale.data.samples.stream import Batch
from flipscale.distributed.world import World
from flipscale.models.presets import ModelSpec
from flipscale.progress import Progress
from flipscale.runs.metrics import MetricsLine, MetricsLog
from flipscale.training.display import TrainingDisplay
from flipscale.training.interval import Interval
from flipscale.training.utilisation import Utilisation

_COUNTS = frozenset({"skipped_steps"})


class StepLog:
    """The log of the steps of a segment. Scalars come to the host once per log interval, all together.

    Args:
        settings: The `logging` block of the job.
        budget: The budget of the job.
        samples_seen: Samples seen at the start.
        metrics: The metrics of the run in the leading process; None in the others.
        specs: The shape of the model in each phase.
        world: The processes of the run.
    """

    def __init__(
        self,
        settings: Logging,
        budget: Budget,
        samples_seen: int,
        metrics: MetricsLog | None,
        specs: Sequence[ModelSpec],
        world: World,
    ) -> None:
        self._every = settings.every
        self._budget = budget
        self._metrics = metrics
        self._utilisation = Utilisation.of([span.phase for span in budget.spans], specs, world)
        self._interval = Interval(samples_seen)
        self._display = TrainingDisplay(budget.total, samples_seen, leads=world.leads)

    def waiting_for_data(self) -> AbstractContextManager[None]:
        """Return a context for the wait for the next batch."""
        return self._interval.waiting_for_data()

    def paused(self) -> AbstractContextManager[None]:
        """Return a context for work that is not training, such as an evaluation; its time does not count."""
        return self._interval.paused()

    def due(self, step: Step, steps_done: int) -> bool:
        """Return whether a line is due after a step.

        Args:
            step: The step.
            steps_done: Steps of the run, this one included.
        """
        if step.stop == self._budget.spans[step.phase].stop:
            return True
        if self._every.unit == "samples":
            return crosses_multiple(step.start, step.stop, self._every.amount)
        return steps_done % self._every.amount == 0

    def write(self, batch: Batch, steps_done: int, progress: Progress, scalars: dict[str, Tensor]) -> None:
        """Write the line of a step. The host waits for the device.

        Args:
            batch: The batch of the step.
            steps_done: Steps of the run, this one included.
            progress: Progress at the end of the step.
            scalars: 0-d tensors on the device by name; `loss` is among them.
        """
        step = batch.step
        stacked = torch.stack([scalar.double() for scalar in scalars.values()])
        values = cast("list[float]", stacked.tolist())
        named = {n: int(v) if n in _COUNTS else v for n, v in zip(scalars, values, strict=True)}
        phase = self._budget.spans[step.phase].phase.name
        images_per_second, waited = self._interval.restart(step.stop)
        caption_tokens = sum(batch.lengths) / len(batch.lengths)

        if self._metrics is not None:
            self._metrics.write(
                MetricsLine(
                    samples=step.stop,
                    step=steps_done,
                    phase=phase,
                    scalars={"lr": step.lr, **named},
                    digest=progress.digest.hex(),
                    content=progress.content_hex,
                    timing={
                        "images_per_second": images_per_second,
                        **self._utilisation.fields(step.phase, images_per_second, caption_tokens),
                        "data_wait_fraction": waited,
                        "peak_memory_gb": _peak_memory_gb(),
                        "time": time.time(),
                    },
                )
            )

        self._display.show(step.stop, phase, named["loss"], images_per_second)

    def __enter__(self) -> StepLog:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)


def _peak_memory_gb() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
