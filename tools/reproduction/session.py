"""One call of the program: find what is left, train and score it, and write the results so far."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flipscale.budget import Budget
from flipscale.cli.console import print_table
from flipscale.config import load_site
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World, join_world
from flipscale.errors import RunError, UserError
from flipscale.files import write_durably
from flipscale.formatting import format_hours
from flipscale.planning.plan import plan_job
from flipscale.runs.directory import prepare
from flipscale.runs.manifest import committed_samples
from reproduction import toy
from reproduction.cells import Experiment
from reproduction.machine import cores
from reproduction.page import draw_curves, markdown, order_sentence
from reproduction.planned import PlannedRun, Workplace
from reproduction.results import make_document
from reproduction.scores import Scores, score_run
from reproduction.training import submit_to_slurm, threads_for, train_here

FLOPS_PER_CORE = 75e9
"""FLOP/s of the toy model in bf16 on a core of an AMD EPYC with AVX-512, with start-ups and scoring."""


@dataclass(frozen=True)
class Options:
    """The options of the command line; see `tools/reproduce.py`."""

    scale: str
    out: Path
    jobs: int | None
    seeds: int | None
    site: Path | None
    imagenet: Path
    overrides: Sequence[str]
    dry_run: bool


class Session:
    """An experiment at one scale, with the options of a call.

    Raises:
        UserError: If the options are wrong, or the cells cannot be scored with the overrides.
    """

    def __init__(self, experiment: Experiment, options: Options) -> None:
        if options.jobs is not None and options.jobs < 1:
            raise UserError(f"--jobs is {options.jobs}; give at least 1")

        self.experiment = experiment
        self.options = options
        self.workplace = Workplace(experiment, options.scale, options.out.resolve())
        self.planned = self.workplace.plan_runs(options.seeds, self._overrides())
        for run in self.planned:
            run.check()

        self.jobs = self._jobs()
        self._scoring = threading.Lock()
        self._scores: dict[str, Scores] = {}  # by the run's name

    def run(self) -> None:
        """Train and score what is left, and write the results; with --dry-run, only show what is left.

        Raises:
            UserError: If runs or their scores are refused, after everything else is done.
            RunError: If a run failed, after everything else is done.
            StoppedEarly: After Ctrl-C.
        """
        if self.options.dry_run:
            self._show()
            return

        self.workplace.prepare()
        site = load_site(self.options.site)
        if self.options.scale == "paper":
            submitted, alive, problems = submit_to_slurm(self.planned, self.options.jobs, site)
            print(f"submitted: {', '.join(submitted) or 'nothing'}; queued or running before: {len(alive)}")
            problems += self._score_all([run for run in self.planned if run.done])
        else:
            toy.make_data(self.workplace.data, workers=cores())
            problems = train_here(self.planned, self.jobs, site, self._score)

        # Write the results before problems are raised: what is done counts.
        self._write()
        if problems:
            kind = UserError if all(isinstance(problem, UserError) for problem in problems) else RunError
            raise kind("; ".join(map(str, problems)))

    def _overrides(self) -> list[str]:
        if self.options.scale == "toy":
            return list(self.options.overrides)

        data = json.dumps(str(self.options.imagenet))  # quoted: a path may hold what means something in YAML
        imagenet = f"{{data: {data}, classnames: imagenet, templates: openai7}}"
        return [f"evaluation.zero_shot.imagenet={imagenet}", *self.options.overrides]

    def _jobs(self) -> int:
        """Return how many runs are trained at once here: one per core, or one run if time is measured."""
        if self.options.scale == "toy" and self.experiment.curve:
            if (self.options.jobs or 1) > 1:
                raise UserError(
                    f"{self.experiment.name} measures time, and runs that share a machine slow each other; "
                    "leave out --jobs"
                )
            return 1

        return self.options.jobs or cores()

    def _score(self, run: PlannedRun) -> None:
        """Score a run that is done. Runs are scored one at a time, since they share torch's settings.

        Raises:
            UserError: If the run was trained by another job.
        """
        prepare(run.directory, run.job, committed_samples(run.directory))
        with self._scoring:
            scores = score_run(run, self.workplace.root / "scores" / f"{run.name}.json", self._world())

        self._scores[run.name] = scores
        accuracies = ", ".join(f"{key}: {share:.1%}" for key, share in scores.accuracies.items())
        print(f"{run.name}: {accuracies}", file=sys.stderr, flush=True)

    def _score_all(self, runs: Sequence[PlannedRun]) -> list[UserError | RunError]:
        problems: list[UserError | RunError] = []
        for run in runs:
            try:
                self._score(run)
            except UserError as error:
                problems.append(error)

        return problems

    def _world(self) -> World:
        import torch

        torch.set_num_threads(threads_for(self.jobs))
        return join_world(Placement())

    def _write(self) -> None:
        scored = [(run, self._scores[run.name]) for run in self.planned if run.name in self._scores]
        document = make_document(
            self.experiment, self.options.scale, self.planned, scored, self.options.overrides
        )

        figure = None
        if document["speed"] is not None:
            figure = "figure.svg"
            draw_curves(document["speed"], self.workplace.root / figure)

        page = self.workplace.root / "table.md"
        write_durably(self.workplace.results, json.dumps(document, indent=1) + "\n")
        write_durably(page, markdown(document, figure))
        print(f"{order_sentence(document['order'])}\n{page} and results.json next to it")

    def _show(self) -> None:
        """Print the runs, and about how long the rest of them takes."""
        rows: list[tuple[str, ...]] = []
        seconds = 0.0
        gpu_hours = 0.0

        for run in self.planned:
            plan = plan_job(run.job)
            seen = committed_samples(run.directory) if run.directory.path.is_dir() else 0
            left = 1 - min(seen, plan.samples) / plan.samples
            expected = plan.seconds
            if self.options.scale == "toy":
                expected = plan.flops / FLOPS_PER_CORE / (cores() / self.jobs)
            seconds += left * expected
            gpu_hours += left * plan.gpu_hours

            state = f"{seen:,} samples" if seen else "to do"
            state = state if left else "done"
            time = format_hours(left * expected)
            rows.append((run.name, run.training.job, *_budget(run.budget), state, time))

        print_table(("run", "job", "samples", "batch", "mask", "steps", "state", "left"), rows)
        cells = len(self.experiment.cells)
        if self.options.scale == "toy":
            rest = f"about {format_hours(seconds / self.jobs)} on {cores()} cores, {self.jobs} at once"
        else:
            rest = f"{gpu_hours:,.0f} GPU-hours, as `flipscale plan` computes them"
        print(f"{len(rows)} runs for {cells} cells; left: {rest}")


def _budget(budget: Budget) -> tuple[str, str, str, str]:
    phases = [span.phase for span in budget.spans]
    return (
        " + ".join(f"{phase.samples:,}" for phase in phases),
        " + ".join(f"{phase.batch_size:,}" for phase in phases),
        " + ".join(f"{phase.mask_ratio:.0%}" for phase in phases),
        f"{budget.steps:,}",
    )
