"""When a run saves a checkpoint, and which checkpoints it keeps permanently."""

from __future__ import annotations

import time

from flipscale.budget import Step, crosses_multiple
from flipscale.config import Job
from flipscale.orchestration.segments.segment import Segment
from flipscale.progress import Progress
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.checkpoint_writer import CheckpointWriter
from flipscale.sharding.strategy import ShardedModel


class Saver:
    """Saves the checkpoints of a segment.

    Args:
        job: The job.
        segment: This start of the run.
        model: The model that is trained.
        progress: Where training begins; a checkpoint of it, if any, is on disk.
    """

    def __init__(self, job: Job, segment: Segment, model: ShardedModel, progress: Progress) -> None:
        self._settings = job.checkpoint
        self._watchdog = segment.watchdog
        self._world = segment.world
        self._root = segment.run.checkpoints
        document = job.model_dump(mode="json", exclude_none=True)
        self._writer = CheckpointWriter(
            self._root, document, job.checkpoint.keep_last, progress, segment.world, segment.committed
        )
        self.prepare(model)
        self._saved_at = progress.samples_seen
        self._saved_time = time.monotonic()

    @property
    def committed(self) -> Progress:
        """The progress of the newest checkpoint on disk."""
        return self._writer.committed

    def prepare(self, model: ShardedModel) -> None:
        """Take the host memory that a save of this model needs."""
        self._writer.prepare(model.state())

    def due(self, step: Step, steps_done: int) -> bool:
        """Return whether a checkpoint is due after a step by its samples or its number.

        Args:
            step: The step.
            steps_done: Steps of the run, this one included.
        """
        for cadence in self._settings.every:
            if cadence.unit == "samples" and crosses_multiple(step.start, step.stop, cadence.amount):
                return True
            if cadence.unit == "steps" and steps_done % cadence.amount == 0:
                return True
        return False

    def due_by_clock(self) -> bool:
        """Return whether a checkpoint is due by the clock of this process."""
        passed = time.monotonic() - self._saved_time
        return any(every.unit == "seconds" and passed >= every.amount for every in self._settings.every)

    def save(self, model: ShardedModel, progress: Progress, *, permanent: bool) -> None:
        """Save a checkpoint; all processes call it together.

        Args:
            model: The model, in the state of `progress`.
            progress: The progress that the checkpoint has.
            permanent: Whether it is kept whatever comes later, such as at the end of a phase.
        """
        keep_every = self._settings.keep_every
        marked = keep_every is not None and crosses_multiple(
            self._saved_at, progress.samples_seen, keep_every
        )

        with self._watchdog.long_operation():
            self._writer.save(model.state(), progress, permanent=permanent or marked)

        self._saved_at = progress.samples_seen
        self._saved_time = time.monotonic()

    def phase_end(self, samples_seen: int) -> Checkpoint:
        """Return the checkpoint at the end of a phase, once it is on disk; all processes call it together.

        Raises:
            RunError: If the checkpoint is damaged.
        """
        self._writer.wait()
        return self._world.lead(lambda: checkpoint.read_phase_end(self._root, samples_seen))

    def close(self) -> None:
        """Wait for the save in progress."""
        self._writer.close()
