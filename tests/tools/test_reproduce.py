"""`tools/reproduce.py`: runs are trained once, failures are reported, and wrong input is one sentence."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reproduce
from reproduction import session, toy, training
from reproduction.cells import Cell, Scale, TrainingRun, View
from reproduction.experiments import TABLE1, TABLE8
from reproduction.planned import PlannedRun, Workplace
from reproduction.scores import Scores
from reproduction.session import Options, Session

from flipscale.config import Site, dump_job
from flipscale.data.synthetic.dataset import SyntheticOptions, synthesize
from flipscale.errors import StoppedEarly, UserError
from flipscale.runs.ledger import read_ledger
from flipscale.runs.manifest import directory_name


def finish(run: PlannedRun) -> None:
    """Write the files that a run leaves when its budget is spent."""
    last = run.directory.checkpoints / directory_name(run.budget.total)
    last.mkdir(parents=True)
    (last / "manifest.json").write_text("{}")
    run.directory.job.write_text(dump_job(run.job))


@pytest.fixture
def two_runs(tmp_path: Path) -> list[PlannedRun]:
    return Workplace(TABLE8, "toy", tmp_path).plan_runs(1)[:2]


def test_finished_run_is_not_trained_again(
    two_runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    monkeypatch.setattr(training, "submit_run", lambda run, *_, **__: trained.append(run.path))
    scored: list[str] = []
    one, other = two_runs
    finish(one)

    def submitted_and_done(run: Any, job: Any, site: Site, *, cluster: str) -> None:
        assert (cluster, site.environment["OMP_NUM_THREADS"]) == ("local", "1")
        trained.append(run.path)
        finish(other)

    monkeypatch.setattr(training, "submit_run", submitted_and_done)

    jobs = training.cores()  # one thread each
    problems = training.train_here(two_runs, jobs, Site(), lambda run: scored.append(run.name))

    assert problems == []
    assert trained == [other.directory.path]
    assert sorted(scored) == [one.name, other.name]


def test_ctrl_c_stops_the_runs(two_runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    run = two_runs[0].directory
    started = threading.Event()

    def submitted(*_: Any, **__: Any) -> None:
        run.path.mkdir(parents=True)
        started.set()

    def interrupted(*_: Any, **__: Any) -> None:
        assert started.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "submit_run", submitted)
    monkeypatch.setattr(training, "living_jobs", lambda run: run.path.is_dir() and not run.stop_file.exists())
    monkeypatch.setattr(training, "wait", interrupted)
    with pytest.raises(StoppedEarly, match="run the same command again to resume"):
        training.train_here(two_runs, 1, Site(), lambda run: None)
    assert run.stop_file.exists()
    assert not two_runs[1].directory.path.exists()  # it was still waiting


def test_failed_run_is_named_and_the_others_are_trained(
    two_runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_runs
    monkeypatch.setattr(training, "submit_run", lambda *_, **__: None)
    finish(other)
    scored: list[str] = []
    (problem,) = training.train_here([one, other], 1, Site(), lambda run: scored.append(run.name))
    assert str(problem).startswith(f"{one.name} ended before its budget was spent (it never began); see ")
    assert scored == [other.name]


def test_slurm_gets_the_runs_that_are_neither_done_nor_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Workplace(TABLE8, "paper", tmp_path).plan_runs(1)
    finish(runs[0])
    runs[1].directory.path.mkdir(parents=True)
    submitted: list[str] = []
    monkeypatch.setattr(training, "require_slurm", lambda: None)
    monkeypatch.setattr(training, "living_jobs", lambda run: run.path.name == runs[1].name)
    monkeypatch.setattr(
        training, "submit_run", lambda run, *_, cluster: submitted.append(f"{cluster} {run.path.name}")
    )
    rest = [run.name for run in runs[2:]]
    assert training.submit_to_slurm(runs, 3, Site()) == (rest[:2], [runs[1].name], [])
    assert submitted == [f"slurm {name}" for name in rest[:2]]
    assert training.submit_to_slurm(runs, None, Site())[0] == rest


@pytest.mark.parametrize("scale", ["toy", "paper"])
def test_run_of_another_job_is_not_scored(
    scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy, "make_data", lambda *_, **__: None)
    monkeypatch.setattr(
        session,
        "score_run",
        lambda run, file, world: Scores(run.training.name, run.seed, {"unmasked": 1.0}, {}, ()),
    )
    runs = Workplace(TABLE8, scale, tmp_path).plan_runs(1)
    for run in runs:
        finish(run)
    other = runs[0].job.model_copy(update={"seed": 7})
    runs[0].directory.job.write_text(dump_job(other))
    arguments = ["table8", "--scale", scale, "--seeds", "1", "--out", str(tmp_path)]
    assert reproduce.main([*arguments, "--imagenet", "/datasets/imagenet/val"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the job file changed since" in error
    assert "seed was 7, now 0" in error
    assert json.loads((tmp_path / f"table8_{scale}" / "results.json").read_text())["cells"]


def test_run_that_slurm_refuses_does_not_keep_the_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Workplace(TABLE8, "paper", tmp_path).plan_runs(1)

    def submit(run: Any, *_: Any, cluster: str) -> None:
        if run.path.name == runs[2].name:
            raise UserError("Slurm refuses it")

    monkeypatch.setattr(training, "require_slurm", lambda: None)
    monkeypatch.setattr(training, "living_jobs", lambda run: False)
    monkeypatch.setattr(training, "submit_run", submit)
    submitted, alive, problems = training.submit_to_slurm(runs, None, Site())
    assert submitted == [run.name for run in runs if run is not runs[2]]
    assert alive == []
    assert [str(problem) for problem in problems] == [f"{runs[2].name}: Slurm refuses it"]


def test_finished_runs_are_scored_without_slurm(tmp_path: Path) -> None:
    runs = Workplace(TABLE8, "paper", tmp_path).plan_runs(1)
    for run in runs:
        finish(run)
    assert training.submit_to_slurm(runs, None, Site()) == ([], [], [])


def test_path_of_imagenet_is_not_parsed(tmp_path: Path) -> None:
    shards = Path("/my, data/imagenet: {00..63}.tar")
    options = Options("paper", tmp_path, None, 1, None, shards, (), True)
    for run in Session(TABLE8, options).planned:
        assert run.job.evaluation.zero_shot["imagenet"].data == str(shards)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["tabel1", "--scale", "toy"],
            "there is no experiment 'tabel1'; give one of table1, figure1, table8",
        ),
        (["table1", "--scale", "toy", "--seeds", "0"], "--seeds is 0; give at least 1"),
        (["table1", "--scale", "toy", "--jobs", "0"], "--jobs is 0; give at least 1"),
        (["figure1", "--scale", "toy", "--jobs", "2"], "figure1 measures time"),
        (["table1", "--scale", "toy", "phases.0.sample=3"], "unknown key phases.0.sample"),
        (
            ["table1", "--scale", "toy", "seed=7"],
            "every run has a seed of its own",
        ),
        (["table1", "--scale", "toy", "phases.0.name=first"], "has no phase masked (it has first"),
        (
            ["figure1", "--scale", "toy", "evaluation.zero_shot.v2={data: v2, classnames: imagenet}"],
            "is scored on one zero-shot set, and has seen_pairs, v2",
        ),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main([*arguments, "--dry-run", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line


def test_unwritable_directory_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "file"
    out.touch()
    assert reproduce.main(["table8", "--scale", "toy", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {out}/table8_toy cannot be written: ")


@pytest.mark.parametrize("scale", ["toy", "paper"])
def test_dry_run_shows_budgets_and_writes_nothing(
    scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        reproduce.main(["table1", "--scale", scale, "--seeds", "1", "--dry-run", "--out", str(tmp_path)]) == 0
    )
    out = capsys.readouterr().out
    assert "11 runs for 26 cells" in out
    assert ("3,200" if scale == "toy" else "2,560,000,000 + 128,000,000") in out
    assert list(tmp_path.iterdir()) == []


def test_scale_of_the_paper_without_slurm_names_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reproduce.main(["table8", "--scale", "paper", "--out", str(tmp_path / "out")]) == 2
    assert "there is no sbatch on PATH" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_cells_are_trained_scored_and_shown(tmp_path: Path) -> None:
    data = tmp_path / "data"
    synthesize(
        data, SyntheticOptions(image_size=toy.IMAGE_SIZE, train=16 * 32, val=0, test=64, shard_size=32)
    )
    runs = {
        "plain": toy.masked_run("plain", 0.0, "16k"),
        "masked": toy.masked_run("masked", 0.5, "32k", tuned=True),
    }
    short = {name: _shortened(run) for name, run in runs.items()}
    cells = (
        Cell("1a", "mask 0 %", "top-1", 68.6, "plain", "masked"),
        Cell("1a", "mask 50 %", "top-1", 69.6, "masked", "masked"),
        Cell("1d", "with mask", "top-1", 66.4, "masked", "masked", View(0.5)),
        Cell("1e", "tuned", "top-1", 70.1, "masked", "unmasked"),
    )
    scale = Scale(short, seeds=1, protocol="Small.")
    experiment = replace(TABLE1, captions={"1a": "a", "1d": "d", "1e": "e"}, cells=cells, toy=scale)
    options = Options(
        "toy", tmp_path, 2, None, None, Path("/none"), ["model=vit_micro_p8", "model.image_size=64"], False
    )
    Session(experiment, options).run()
    document = json.loads((tmp_path / "table1_toy/results.json").read_text())
    assert document["runs"] == {"planned": 2, "done": 2}
    assert all(0 <= cell["ours"] <= 100 and cell["seconds"] > 0 for cell in document["cells"])

    again = Session(experiment, options)
    again.run()
    for run in again.planned:
        (segment,) = read_ledger(run.directory.path)  # nothing was trained twice
        assert segment.reason == "done"

    (again.planned[0].directory.checkpoints / "LATEST").unlink()
    (tmp_path / "table1_toy/scores/plain_s0.json").write_text("damaged")
    with pytest.raises(UserError, match=r"plain_s0\.json is damaged; delete it"):
        Session(experiment, options).run()


def _shortened(run: TrainingRun) -> TrainingRun:
    (phases, *others) = run.overrides
    for long, brief in (("32000", "320"), ("samples: 3200", "samples: 64"), ("warmup: 3200", "warmup: 32")):
        phases = phases.replace(long, brief)
    return replace(run, overrides=(phases.replace("warmup: 320", "warmup: 32"), *others))
