"""Phases, steps, learning rates and epochs: pure arithmetic on whole numbers of samples seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flipscale.config import Phase
from flipscale.errors import UserError


@dataclass(frozen=True)
class Step:
    """One optimizer step, whose global batch takes the sample positions from `start` to `stop`."""

    phase: int
    """The number of the phase."""
    start: int
    """Samples seen before the step."""
    size: int
    """Samples of the global batch."""
    lr: float
    """The learning rate of the step."""

    @property
    def stop(self) -> int:
        """Samples seen after the step."""
        return self.start + self.size


@dataclass(frozen=True)
class PhaseSpan:
    """A phase at its place in the run, where it spends the samples from `start` to `stop`."""

    index: int
    """The number of the phase."""
    phase: Phase
    """The phase as the job states it."""
    start: int
    """Samples seen before the phase."""

    @property
    def stop(self) -> int:
        """Samples seen after the phase."""
        return self.start + self.phase.samples

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one is smaller if the batch does not divide the budget."""
        return -(-self.phase.samples // self.phase.batch_size)

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: base_lr x batch_size / 256 (paper, A.1)."""
        return self.phase.base_lr * self.phase.batch_size / 256

    def batch_at(self, samples_seen: int) -> int:
        """Return the size of the global batch that starts at `samples_seen`: the batch size, or the rest."""
        assert self.start <= samples_seen < self.stop
        return min(self.phase.batch_size, self.stop - samples_seen)

    def lr_at(self, samples_seen: int) -> float:
        """Return the learning rate of the step that starts at `samples_seen`.

        The rate rises linearly over `warmup` samples and reaches the peak with the step that completes them.
        Then it falls to 0: with a cosine over the rest of the phase, or, if the phase has a cooldown,
        linearly over its last `cooldown` samples. The latter is OpenCLIP's `const_lr_cooldown` at its default
        power of 1 (open_clip_train/scheduler.py), counted in samples.
        """
        done = samples_seen - self.start
        warmup = self.phase.warmup

        rise = min(1.0, (done + self.batch_at(samples_seen)) / warmup) if warmup else 1.0
        if self.phase.cooldown is not None:
            return self.peak_lr * rise * min(1.0, (self.phase.samples - done) / self.phase.cooldown)

        fall = max(0, done - warmup) / (self.phase.samples - warmup)
        return self.peak_lr * rise * 0.5 * (1.0 + math.cos(math.pi * fall))


@dataclass(frozen=True)
class Budget:
    """All phases of a run; the number of samples seen is the only clock."""

    spans: tuple[PhaseSpan, ...]
    """The phases in the order in which they are trained."""

    @classmethod
    def of(cls, phases: Sequence[Phase], lanes: int) -> Budget:
        """Return the budget of a run.

        A phase spends exactly its samples: if the batch does not divide them, its last step takes the rest.

        Args:
            phases: The phases in order.
            lanes: Lanes of the sample order; batches and budgets must be multiples of them.

        Raises:
            UserError: If a batch or a budget is not a multiple; the message names the two nearest counts.
        """
        spans: list[PhaseSpan] = []
        start = 0

        for index, phase in enumerate(phases):
            _check_multiple(phase.batch_size, lanes, f"phases.{index}.batch_size ({phase.name})")
            _check_multiple(phase.samples, lanes, f"phases.{index}.samples ({phase.name})")
            spans.append(PhaseSpan(index, phase, start))
            start += phase.samples

        return cls(tuple(spans))

    @property
    def total(self) -> int:
        """Samples of all phases."""
        return self.spans[-1].stop

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(span.steps for span in self.spans)

    def span_at(self, samples_seen: int) -> PhaseSpan:
        """Return the phase to which the sample position `samples_seen` belongs.

        Raises:
            ValueError: If the position is outside the budget.
        """
        for span in self.spans:
            if span.start <= samples_seen < span.stop:
                return span
        raise ValueError(f"{samples_seen} is outside the budget of {self.total} samples")

    def step_at(self, samples_seen: int) -> Step:
        """Return the step that starts at `samples_seen`."""
        span = self.span_at(samples_seen)
        return Step(span.index, samples_seen, span.batch_at(samples_seen), span.lr_at(samples_seen))

    def steps_from(self, samples_seen: int) -> Iterator[Step]:
        """Yield every step from `samples_seen` to the end of the budget.

        Raises:
            ValueError: If no step starts there.
        """
        if samples_seen != self.total and not self.is_boundary(samples_seen):
            raise ValueError(f"no step of this budget starts at {samples_seen} samples")

        while samples_seen < self.total:
            step = self.step_at(samples_seen)
            yield step
            samples_seen = step.stop

    def is_boundary(self, samples_seen: int) -> bool:
        """Return whether a step starts, or the budget ends, at `samples_seen`."""
        if samples_seen == self.total:
            return True
        if not 0 <= samples_seen < self.total:
            return False

        span = self.span_at(samples_seen)
        return (samples_seen - span.start) % span.phase.batch_size == 0

    def steps_done(self, samples_seen: int) -> int:
        """Return the number of steps that are complete at `samples_seen`, which must be a step boundary."""
        done = 0
        for span in self.spans:
            inside = min(max(samples_seen - span.start, 0), span.phase.samples)
            done += -(-inside // span.phase.batch_size)
        return done


def epochs(samples: int, dataset_samples: int) -> float:
    """Return how many passes over a data set of `dataset_samples` the given samples make."""
    return samples / dataset_samples


def crosses_multiple(before: int, after: int, every: int) -> bool:
    """Return whether counting from `before` to `after` reaches or passes a multiple of `every`."""
    return after // every > before // every


def check_world_size(world_size: int, lanes: int) -> None:
    """Check that processes can share the lanes evenly: each one takes lanes / world_size of them.

    Args:
        world_size: The number of processes.
        lanes: The number of lanes, `data.lanes`.

    Raises:
        UserError: If they cannot; the message names the nearest numbers of processes that can.
    """
    if lanes % world_size == 0:
        return

    fitting = [n for n in range(1, lanes + 1) if lanes % n == 0]
    below = max(n for n in fitting if n < world_size)
    above = [f" or {n}" for n in fitting if n > world_size][:1]
    raise UserError(
        f"{world_size} processes cannot share data.lanes = {lanes} evenly; start {below}{''.join(above)} "
        f"processes, or set data.lanes to a multiple of {world_size} in a new run"
    )


def _check_multiple(value: int, lanes: int, what: str) -> None:
    if value % lanes == 0:
        return

    below = value // lanes * lanes
    nearest = f"the nearest are {below} and {below + lanes}" if below else f"the nearest is {lanes}"
    raise UserError(f"{what} is {value}, not a multiple of data.lanes = {lanes}; {nearest}")
