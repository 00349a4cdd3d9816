"""The progress of training for a person: a progress line on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from flipscale.formatting import format_clock, format_count

_log = logging.getLogger(__name__)


class TrainingDisplay:
    """A display of samples, phase, images/s, loss and remaining time; silent in all but the leading process.

    Args:
        total: Samples of the budget.
        samples_seen: Samples seen at the start.
        leads: Whether this is the leading process.
    """

    def __init__(self, total: int, samples_seen: int, *, leads: bool) -> None:
        self._total = total
        self._leads = leads
        self._progress: RichProgress | None = None

        console = Console(stderr=True)
        if leads and console.is_terminal:
            self._progress = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[samples]}"),
                TaskProgressColumn(),
                TextColumn("{task.fields[speed]}"),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._progress.add_task(
                "training", total=total, completed=samples_seen, samples="", speed="", loss=""
            )

    def show(self, samples_seen: int, phase: str, loss: float, images_per_second: float) -> None:
        """Show the latest log step.

        Args:
            samples_seen: Samples seen so far.
            phase: The name of the phase.
            loss: The loss of the step.
            images_per_second: The speed since the log step before.
        """
        samples = f"{format_count(samples_seen)} of {format_count(self._total)}"
        speed = f"{images_per_second:,.0f} images/s"

        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0],
                completed=samples_seen,
                description=phase,
                samples=samples,
                speed=speed,
                loss=f"loss {loss:.4f}",
            )
        elif self._leads:
            left = (self._total - samples_seen) / max(images_per_second, 1e-9)
            _log.info(
                "%s: %s samples, %s, loss %.4f, %s left", phase, samples, speed, loss, format_clock(left)
            )

    def __enter__(self) -> TrainingDisplay:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
