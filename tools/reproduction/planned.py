"""The runs of an experiment in its directory: each training with each seed, and how far it is.

OUT/data/                     the toy data set, which all experiments share
OUT/table1_toy/runs/RUN_s0/   run directories
OUT/table1_toy/scores/        the scores of each run
OUT/table1_toy/results.json, table.md and, for a figure, figure.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flipscale.budget import Budget
from flipscale.config import Job, load_job
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory, run_directory
from flipscale.runs.manifest import committed_samples, directory_name
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
        """The name of the run within its experiment."""
        return f"{self.training.name}_s{self.seed}"

    @property
    def directory(self) -> RunDirectory:
        """The run directory, which may not exist yet."""
        return run_directory(self.job)

    @cached_property
    def budget(self) -> Budget:
        """The samples and steps of the run."""
        return Budget.of(self.job.phases, self.job.data.lanes)

    @property
    def done(self) -> bool:
        """Whether a committed checkpoint holds the whole budget."""
        return committed_samples(self.directory) >= self.budget.total

    def checkpoint_of(self, cell: Cell) -> Path:
        """Return the checkpoint of a cell's model: a run keeps the one at the end of each phase."""
        spans = {span.phase.name: span for span in self.budget.spans}
        return self.directory.checkpoints / directory_name(spans[self.phase_of(cell)].stop)

    def phase_of(self, cell: Cell) -> str:
        """Return the phase at whose end the model of a cell is taken."""
        return cell.phase or self.job.phases[-1].name

    def check(self) -> None:
        """Check that the cells can be scored with the overrides.

        Raises:
            UserError: If a phase that a cell needs is missing, or the job has not exactly one zero-shot set.
        """
        phases = [phase.name for phase in self.job.phases]
        missing = {self.phase_of(cell) for cell in self.cells} - {*phases}
        if missing:
            raise UserError(
                f"{self.name} has no phase {', '.join(sorted(missing))} (it has {', '.join(phases)}), but a "
                "cell is scored at its end; keep the names of the phases"
            )

        sets = list(self.job.evaluation.zero_shot)
        if len(sets) != 1:
            names = ", ".join(sets) or "none"
            raise UserError(
                f"{self.name} is scored on one zero-shot set, and has {names}; leave the others out"
            )


@dataclass(frozen=True)
class Workplace:
    """An experiment at one scale, in its directory."""

    experiment: Experiment
    scale: str  # toy or paper
    out: Path  # directory of all experiments

    @property
    def root(self) -> Path:
        """The directory of the experiment at this scale."""
        return self.out / f"{self.experiment.name}_{self.scale}"

    @property
    def data(self) -> Path:
        """The toy data set."""
        return self.out / "data"

    @property
    def results(self) -> Path:
        """The JSON document of the experiment."""
        return self.root / "results.json"

    def plan_runs(self, seeds: int | None, overrides: Sequence[str] = ()) -> list[PlannedRun]:
        """Return the runs, seed after seed, so that an early end leaves whole tables.

        Args:
            seeds: Seeds of every run; None for those of the scale.
            overrides: Overrides of every job, after the job's own.

        Raises:
            UserError: If there is less than one seed, or an override sets what each run has of its own.
        """
        scale = self.experiment.scale(self.scale)
        count = scale.seeds if seeds is None else seeds
        if count < 1:
            raise UserError(f"--seeds is {count}; give at least 1")

        return [
            self._plan_run(training, seed, overrides)
            for seed in range(count)
            for training in scale.runs.values()
        ]

    def _plan_run(self, training: TrainingRun, seed: int, overrides: Sequence[str]) -> PlannedRun:
        for override in overrides:
            if (key := override.partition("=")[0].strip()) in _OF_THE_RUN:
                raise UserError(f"{override} cannot be given here: every run has a {key} of its own")

        own = [f"seed={seed}", f"name={self.experiment.name}_{training.name}_s{seed}"]
        own.append(f"output={self.root / 'runs' / f'{training.name}_s{seed}'}")
        if training.toy_shards is not None:
            own += toy.local_overrides(self.data, training.toy_shards)

        job = load_job(JOBS / training.job, [*training.overrides, *own, *overrides])
        return PlannedRun(training, seed, job, tuple(self.experiment.cells_of(training.name)))

    def prepare(self) -> None:
        """Make the directories.

        Raises:
            UserError: If they cannot be made.
        """
        try:
            for folder in ("runs", "scores"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.root} cannot be written: {error.strerror}; name another directory with --out"
            ) from None
