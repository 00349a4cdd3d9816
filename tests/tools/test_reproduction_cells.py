"""The cells of the reproduced tables: the paper's figures, jobs with the cells' settings, equal budgets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from reproduction.cells import Experiment, compared_pairs
from reproduction.experiments import EXPERIMENTS, FIGURE1, TABLE1, TABLE8
from reproduction.planned import PlannedRun, Workplace

MASKS = {"00": 0.0, "50": 0.5, "75": 0.75}
IMAGENET = ["evaluation.zero_shot.imagenet={data: /imagenet, classnames: imagenet, templates: openai7}"]


def planned(experiment: Experiment, scale: str) -> dict[str, PlannedRun]:
    workplace = Workplace(experiment, scale, Path("/nowhere"))
    runs = workplace.plan_runs(1, IMAGENET if scale == "paper" else [])
    return {run.training.name: run for run in runs}


@pytest.mark.parametrize("scale", ["toy", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_cell_has_a_run_and_every_run_a_cell(experiment: Experiment, scale: str) -> None:
    runs = planned(experiment, scale)
    assert {cell.run for cell in experiment.cells} == set(runs)
    assert {cell.table for cell in experiment.cells} == set(experiment.captions)
    for run in runs.values():
        assert len(run.job.evaluation.zero_shot) == 1
        for cell in run.cells:
            assert run.phase_of(cell) in [phase.name for phase in run.job.phases]
            assert run.checkpoint_of(cell).parent == run.directory.checkpoints
    assert len({run.directory.path for run in runs.values()}) == len(runs)
    assert len({run.job.name for run in runs.values()}) == len(runs)


def test_table_1_has_the_papers_figures() -> None:
    # The figures of the paper's table 1, row by row.
    expected = {
        "1a": [68.6, 69.6, 68.2],
        "1b": [68.5, 69.6, 70.4, 65.8, 67.3, 68.2],
        "1c": [68.2, 66.0, 67.8],
        "1d": [66.4, 68.1, 69.6, 60.9, 65.1, 68.2],
        "1e": [69.6, 70.1, 68.2, 69.5],
        "1f": [69.6, 69.4, 68.2, 67.9],
    }
    for table, values in expected.items():
        assert [cell.paper for cell in TABLE1.cells if cell.table == table] == values
    # A model of the paper is trained once: the masked cells of 1a are in other tables, too.
    plain = [cell for cell in TABLE1.cells if cell.phase == "masked" and not cell.view.mask_ratio]
    assert Counter(cell.run for cell in plain) == {
        "m50_32k": 5, "m75_64k": 6, "m00_16k": 1, "m50_16k": 1, "m50_64k": 1, "m75_16k": 1, "m75_32k": 1,
        "text_random": 1, "text_prioritised": 1, "m50_32k_reconstruction": 1, "m75_64k_reconstruction": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("scale", "samples"), [("toy", 32_000), ("paper", 2_560_000_000)])
def test_runs_of_table_1_have_the_settings_of_their_cells(scale: str, samples: int) -> None:
    batches = {"16k": (32, 16_384), "32k": (64, 32_768), "64k": (128, 65_536)}
    runs = planned(TABLE1, scale)
    for name, run in runs.items():
        phase = run.job.phases[0]
        assert (phase.name, phase.samples) == ("masked", samples)
        if name.startswith("m"):
            mask, batch = name[1:].split("_")[:2]
            assert phase.mask_ratio == MASKS[mask]
            assert phase.batch_size == batches[batch][scale == "paper"]
        has_decoder = run.job.loss.reconstruction is not None
        assert has_decoder == name.endswith("reconstruction")
        assert len(run.job.phases) == 1 + (name in ("m50_32k", "m75_64k"))
    for how in ("random", "prioritised"):
        phase = runs[f"text_{how}"].job.phases[0]
        like = runs["m75_64k"].job.phases[0]
        assert (phase.text_mask_ratio, phase.text_mask) == (0.5, how)
        assert phase.model_copy(update={"text_mask_ratio": 0.0, "text_mask": like.text_mask}) == like
    for name in ("m50_32k", "m75_64k"):
        reconstructing = runs[f"{name}_reconstruction"].job
        assert reconstructing.phases[0] == runs[name].job.phases[0]


def test_masks_of_table_1d_are_those_of_training() -> None:
    runs = planned(TABLE1, "toy")
    masked = [cell for cell in TABLE1.cells if cell.view.mask_ratio]
    assert len(masked) == 4
    for cell in masked:
        assert cell.view.mask_ratio == runs[cell.run].job.phases[0].mask_ratio
        assert cell.view.ensemble == ("ensemble" in cell.row)


def test_runs_of_figure_1_are_evaluated_during_training() -> None:
    for scale in ("toy", "paper"):
        runs = planned(FIGURE1, scale)
        assert FIGURE1.curve == tuple(runs)
        assert {run.job.phases[0].samples for run in runs.values()} == {
            32_000 if scale == "toy" else 12_800_000_000
        }
        for name, run in runs.items():
            assert run.job.evaluation.every is not None
            assert run.job.phases[0].mask_ratio == MASKS[name.removeprefix("mask")]


def test_table_8_scales_one_thing_after_another() -> None:
    runs = {name: run.job for name, run in planned(TABLE8, "toy").items()}
    bigger = {
        "baseline": (), "model": ("model",), "data": ("data",), "schedule": ("schedule",),
        "model_data": ("model", "data"), "joint": ("model", "data", "schedule"),
    }  # fmt: skip
    base = runs["baseline"]
    for name, scaled in bigger.items():
        job = runs[name]
        assert (job.model != base.model) == ("model" in scaled)
        assert (job.data.train != base.data.train) == ("data" in scaled)
        assert (job.phases[0].samples == 2 * base.phases[0].samples) == ("schedule" in scaled)
        assert job.phases[0].mask_ratio == 0.5
    paper = {name: run.job for name, run in planned(TABLE8, "paper").items()}
    assert [paper[name].phases[0].samples for name in bigger] == [
        12_800_000_000, 12_800_000_000, 12_800_000_000, 25_600_000_000, 12_800_000_000, 25_600_000_000,
    ]  # fmt: skip


def test_pairs_share_a_row_or_column_and_begin_with_the_papers_better_cell() -> None:
    pairs = compared_pairs(TABLE1.cells)
    counts = Counter(better.table for better, _ in pairs)
    # 1b: 2 rows of 3 pairs and 3 columns; 1d: 2 columns of 3 pairs and 3 rows; 1e and 1f: 2 and 2.
    assert counts == {"1a": 3, "1b": 9, "1c": 3, "1d": 9, "1e": 4, "1f": 4}
    assert all(better.paper > worse.paper for better, worse in pairs)
    assert all(better.row == worse.row or better.column == worse.column for better, worse in pairs)


def test_seeds_are_run_one_after_another() -> None:
    runs = Workplace(TABLE8, "toy", Path("/nowhere")).plan_runs(2)
    assert [run.seed for run in runs] == [0] * 6 + [1] * 6
    assert [run.job.seed for run in runs] == [run.seed for run in runs]
