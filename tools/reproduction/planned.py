"""The runs of an experiment in its directory: each training with each seed, and how far it has come.

OUT/data/                     the toy data set, which all experiments share
OUT/table1_toy/runs/RUN_s0/   run directories
OUT/table1_toy/scores/        what was scored of each run
OUT/table1_toy/results.json, table.md and, of a figure, figure.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flipscale.budget import Budget
from flipscale.config import Job, load_job
from flipscale.errors import UserError
from flipscale.runs import checkpoint
from flipscale.runs.directory import RunDirectory, committed_samples, run_directory
from reproduction import toy
from reproduction.cells import Cell, Experiment, TrainingRun

_OF_THE_RUN = ("seed", "name", "output")
JOBS = Path(__file__).resolve().parents[2] / "jobs"


@dataclass(frozen=True)
class PlannedRun:
    """One training with one seed."""

    training: TrainingRun
    seed: int
    job: Job
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        return f"{self.training.name}_s{self.seed}"

    @property
    def directory(self) -> RunDirectory:
        return run_directory(self.job)

    @cached_property
    def budget(self) -> Budget:
        return Budget.of(self.job.phases, self.job.data.lanes)

    @property
    def done(self) -> bool:
        return committed_samples(self.directory) >= self.budget.total

    def checkpoint_of(self, cell: Cell) -> Path:
        """Where the model of `cell` lies, or will lie: a run keeps what it was at the end of each phase."""
        spans = {span.phase.name: span for span in self.budget.spans}
        return self.directory.checkpoints / checkpoint.directory_name(spans[self.phase_of(cell)].stop)

    def phase_of(self, cell: Cell) -> str:
        """The phase at whose end the model of `cell` is taken."""
        return cell.phase or self.job.phases[-1].name

    def check(self) -> None:
        """Raise UserError where the overrides leave nothing that the cells could be read from."""
        phases = [phase.name for phase in self.job.phases]
        missing = {self.phase_of(cell) for cell in self.cells} - {*phases}
        if missing:
            raise UserError(
                f"{self.name} has no phase {', '.join(sorted(missing))} (it has {', '.join(phases)}), but a "
                "cell is scored at its end; keep the names of the phases"
            )
        sets = list(self.job.evaluation.zero_shot)
        if len(sets) != 1:
            told = ", ".join(sets) or "none"
            raise UserError(
                f"{self.name} is scored on one zero-shot set, and has {told}; leave the others out"
            )


@dataclass(frozen=True)
class Workplace:
    """An experiment at one scale, in its directory."""

    experiment: Experiment
    scale: str  # toy or paper
    out: Path  # that of all experiments

    @property
    def root(self) -> Path:
        return self.out / f"{self.experiment.name}_{self.scale}"

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    def planned(self, seeds: int | None, overrides: Sequence[str] = ()) -> list[PlannedRun]:
        """The runs, those of one seed after those of another, so that an early end leaves whole tables.

        Args:
            overrides: of every job, after its own.

        Raises UserError for fewer than one seed.
        """
        scale = self.experiment.scale(self.scale)
        count = scale.seeds if seeds is None else seeds
        if count < 1:
            raise UserError(f"--seeds is {count}; give at least 1")
        return [
            self._planned(training, seed, overrides)
            for seed in range(count)
            for training in scale.runs.values()
        ]

    def _planned(self, training: TrainingRun, seed: int, overrides: Sequence[str]) -> PlannedRun:
        for override in overrides:
            if (key := override.partition("=")[0].strip()) in _OF_THE_RUN:
                raise UserError(f"{override} cannot be given here: every run has a {key} of its own")
        own = [f"seed={seed}", f"name={self.experiment.name}_{training.name}_s{seed}"]
        own.append(f"output={self.root / 'runs' / f'{training.name}_s{seed}'}")
        if training.toy_shards is not None:
            own += toy.overrides_here(self.data, training.toy_shards)
        job = load_job(JOBS / training.job, [*training.overrides, *own, *overrides])
        return PlannedRun(training, seed, job, tuple(self.experiment.cells_of(training.name)))

    def prepare(self) -> None:
        """Make the directories. Raises UserError where that cannot be."""
        try:
            for folder in ("runs", "scores"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.root} cannot be written: {error.strerror}; name another directory with --out"
            ) from None
