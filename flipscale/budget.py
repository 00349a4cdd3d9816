"""Samples seen: phases, steps, learning rates and epochs. Pure arithmetic on whole numbers of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flipscale.config import Phase
from flipscale.errors import UserError


@dataclass(frozen=True)
class Step:
    """One optimizer step: the global batch takes the sample positions `start` to `start + size`."""

    phase: int
    start: int
    size: int
    lr: float

    @property
    def stop(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class PhaseSpan:
    """A phase at its place in the run: it spends the samples from `start` to `stop`."""

    index: int
    phase: Phase
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.phase.samples

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one is smaller where the batch does not divide the budget."""
        return -(-self.phase.samples // self.phase.batch_size)

    @property
    def peak_lr(self) -> float:
        """base_lr x batch_size / 256 (paper, A.1)."""
        return self.phase.base_lr * self.phase.batch_size / 256

    def batch_at(self, samples_seen: int) -> int:
        """Size of the global batch that starts at `samples_seen`: the batch size, or what is left."""
        assert self.start <= samples_seen < self.stop
        return min(self.phase.batch_size, self.stop - samples_seen)

    def lr_at(self, samples_seen: int) -> float:
        """Learning rate of the step that starts at `samples_seen`.

        Rises linearly over `warmup` samples, reaching the peak with the step that completes them, then
        falls to 0 with a cosine over the rest of the phase.
        """
        done = samples_seen - self.start
        warmup = self.phase.warmup
        rise = min(1.0, (done + self.batch_at(samples_seen)) / warmup) if warmup else 1.0
        fall = max(0, done - warmup) / (self.phase.samples - warmup)
        return self.peak_lr * rise * 0.5 * (1.0 + math.cos(math.pi * fall))


@dataclass(frozen=True)
class Budget:
    """All phases of a run in order; `samples_seen` is the only clock."""

    spans: tuple[PhaseSpan, ...]

    @classmethod
    def of(cls, phases: Sequence[Phase], lanes: int) -> Budget:
        """Lay the phases end to end.

        A phase spends exactly its samples: where the batch does not divide them, its last step takes the
        rest. Batches and budgets must be multiples of `lanes` (sample-order contract); otherwise UserError
        names the two nearest counts.
        """
        spans: list[PhaseSpan] = []
        start = 0
        for index, phase in enumerate(phases):
            _must_be_multiple(phase.batch_size, lanes, f"phases.{index}.batch_size ({phase.name})")
            _must_be_multiple(phase.samples, lanes, f"phases.{index}.samples ({phase.name})")
            spans.append(PhaseSpan(index, phase, start))
            start += phase.samples
        return cls(tuple(spans))

    @property
    def total(self) -> int:
        return self.spans[-1].stop

    @property
    def steps(self) -> int:
        return sum(span.steps for span in self.spans)

    def span_at(self, samples_seen: int) -> PhaseSpan:
        """The phase that the sample number `samples_seen` belongs to."""
        for span in self.spans:
            if span.start <= samples_seen < span.stop:
                return span
        raise ValueError(f"{samples_seen} is outside the budget of {self.total} samples")

    def step_at(self, samples_seen: int) -> Step:
        span = self.span_at(samples_seen)
        return Step(span.index, samples_seen, span.batch_at(samples_seen), span.lr_at(samples_seen))

    def steps_from(self, samples_seen: int) -> Iterator[Step]:
        """Every step from `samples_seen` (a step boundary) to the end of the budget."""
        if samples_seen != self.total and not self.is_boundary(samples_seen):
            raise ValueError(f"no step of this budget starts at {samples_seen} samples")
        while samples_seen < self.total:
            step = self.step_at(samples_seen)
            yield step
            samples_seen = step.stop

    def is_boundary(self, samples_seen: int) -> bool:
        """Whether a step starts (or the budget ends) at `samples_seen`."""
        if samples_seen == self.total:
            return True
        if not 0 <= samples_seen < self.total:
            return False
        span = self.span_at(samples_seen)
        return (samples_seen - span.start) % span.phase.batch_size == 0

    def steps_done(self, samples_seen: int) -> int:
        """Optimizer steps completed when `samples_seen` (a step boundary) samples were seen."""
        done = 0
        for span in self.spans:
            inside = min(max(samples_seen - span.start, 0), span.phase.samples)
            done += -(-inside // span.phase.batch_size)
        return done


def epochs(samples: int, dataset_samples: int) -> float:
    """Passes over a data set of `dataset_samples` that `samples` samples make."""
    return samples / dataset_samples


def crosses_multiple(before: int, after: int, every: int) -> bool:
    """Whether counting from `before` to `after` reaches or passes a multiple of `every`."""
    return after // every > before // every


def check_world_size(world_size: int, lanes: int) -> None:
    """Every process takes lanes / world_size lanes. Raises UserError naming world sizes that work."""
    if lanes % world_size == 0:
        return
    fitting = [n for n in range(1, lanes + 1) if lanes % n == 0]
    below = max(n for n in fitting if n < world_size)
    above = [f" or {n}" for n in fitting if n > world_size][:1]
    raise UserError(
        f"{world_size} processes cannot share data.lanes = {lanes} evenly; start {below}{''.join(above)} "
        f"processes, or set data.lanes to a multiple of {world_size} in a new run"
    )


def _must_be_multiple(value: int, lanes: int, what: str) -> None:
    if value % lanes == 0:
        return
    below = value // lanes * lanes
    nearest = f"the nearest are {below} and {below + lanes}" if below else f"the nearest is {lanes}"
    raise UserError(f"{what} is {value}, no multiple of data.lanes = {lanes}; {nearest}")
