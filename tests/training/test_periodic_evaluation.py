"""Evaluation while training: its cadence, its processes, and that it leaves the training unchanged."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.shards import write_tar
from support.stop_at import StopAt
from support.tiny_run import TinyRun

from flipscale.budget import Budget
from flipscale.config import Evaluation, Phase, load_job
from flipscale.distributed.world import World
from flipscale.errors import StoppedEarly, UserError
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.watchdog import Watchdog
from flipscale.runs.directory import run_directory
from flipscale.runs.evaluations import read_evaluations
from flipscale.runs.metrics import TIMING_FIELDS
from flipscale.training import periodic_evaluation, trainer
from flipscale.training.check_job import check_job
from flipscale.training.periodic_evaluation import PeriodicEvaluation

MakeRun = Callable[..., TinyRun]
SOME = {"retrieval": {"captions": "some.tar"}}
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def sets(data_set: Path) -> dict[str, Any]:
    """Return 100 labelled and 16 captioned images: two processes cannot share their batches of 64 evenly."""
    seen = {"data": str(data_set / "test/00000.tar"), "classnames": str(data_set / "classnames.txt")}
    return {
        "zero_shot": {"seen": {**seen, "templates": str(data_set / "templates.txt")}},
        "retrieval": {"captions": str(data_set / "val/00000.tar")},
    }


def train(run: TinyRun, *, steps: int = 10**6) -> None:
    job = load_job(run.job)
    directory = run_directory(job)
    trainer.train(job, check_job(job, 1), Segment(directory, ALONE, StopAt(directory, steps), hang=job.hang))


def evaluations(run: TinyRun) -> list[dict[str, Any]]:
    """Return the evaluations without the fields that depend on the clock."""
    kept = (recorded.document.items() for recorded in read_evaluations(run.output))
    return [{key: value for key, value in items if key not in TIMING_FIELDS} for items in kept]


def places(run: TinyRun) -> list[int]:
    return [record["samples_seen"] for record in evaluations(run)]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("32 samples", [32, 64, 80, 96, 128]),
        ("40 samples", [48, 80, 128]),
        ("2 steps", [32, 64, 80, 96, 128]),
        ("100 steps", [80, 128]),
        (None, []),
    ],
)
def test_it_is_due_at_its_cadence_and_at_the_end_of_each_phase(
    every: str | None, expected: list[int]
) -> None:
    budget = Budget.of(
        [
            Phase(name="a", samples=80, mask_ratio=0, batch_size=16, base_lr=1),
            Phase(name="b", samples=48, mask_ratio=0, batch_size=16, base_lr=1),
        ],
        16,
    )
    settings = Evaluation.model_construct(every=Evaluation.model_validate(SOME | {"every": every}).every)
    unused: Any = None
    evaluation = PeriodicEvaluation(settings, budget, unused, unused, 32, ALONE)
    assert [seen for seen in range(0, 129, 16) if evaluation.due(seen)] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [(SOME | {"every": "30min"}, "not time"), ({"every": "10 steps"}, "needs a set to evaluate")],
)
def test_a_cadence_by_the_clock_or_without_sets_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluation.model_validate(settings)


class TwoNodes(World):
    """This process and one on another node, which always gives the same answer."""

    def gather(self, value: Any, group: Any = None) -> list[Any]:
        return [value, UserError("names.txt is not on n2")]


def test_a_set_that_one_node_does_not_see_is_refused_on_all(sets: dict[str, Any]) -> None:
    there, gone = Evaluation.model_validate(sets | {"every": "10 steps"}), {"captions": "gone.tar"}
    missing = Evaluation.model_validate({"retrieval": gone, "every": "10 steps"})
    PeriodicEvaluation.check(there, ALONE)
    with pytest.raises(UserError, match="not on n2"):
        PeriodicEvaluation.check(there, TwoNodes(0, 2, 0, 1, torch.device("cpu")))
    with pytest.raises(UserError, match=r"gone\.tar"):
        PeriodicEvaluation.check(missing, TwoNodes(0, 2, 0, 1, torch.device("cpu")))


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_and_the_scores_are_those_of_the_command(
    tiny_run: MakeRun, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, evaluated = tiny_run("plain"), tiny_run("evaluated", evaluation={**sets, "every": "20 steps"})
    signs: list[None] = []
    monkeypatch.setattr(Watchdog, "alive", lambda dog: signs.append(None))
    train(plain)
    assert not signs
    train(evaluated)
    assert len(signs) == 3 * (2 + 1)  # three evaluations of 100 and 16 images, by 64
    assert evaluated.weights() == plain.weights()
    assert evaluated.metrics() == plain.metrics()
    assert evaluated.last_manifest()["progress"] == plain.last_manifest()["progress"]
    assert places(evaluated) == [320, 640, 792]
    assert not (plain.output / "evaluations.jsonl").exists()
    # The scored model is on disk, and the command computes the same numbers for it.
    assert (evaluated.output / "checkpoints" / "samples_000000000640").exists()
    assert evaluations(evaluated)[-1] == by_command(evaluated)


def by_command(run: TinyRun, processes: int = 1, *options: str) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        "-m",
        "flipscale",
        "eval",
        str(run.output),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json", *options], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_processes_share_the_command_and_get_the_numbers_of_one(
    tiny_run: MakeRun, sets: dict[str, Any]
) -> None:
    """The sets have 15 and 3 batches; two processes print one document."""
    run = tiny_run(evaluation=sets)
    with pytest.raises(StoppedEarly):
        train(run, steps=4)
    alone = by_command(run, 1, "--batch-size", "7")
    assert alone["zero_shot"]["seen"]["samples"] == 100
    assert by_command(run, 2, "--batch-size", "7") == alone


@pytest.mark.slow
def test_a_stopped_run_repeats_and_leaves_out_no_evaluation(tiny_run: MakeRun, sets: dict[str, Any]) -> None:
    every = {**sets, "every": "4 steps"}
    straight, stopped = tiny_run("straight", evaluation=every), tiny_run("stopped", evaluation=every)
    train(straight)
    with pytest.raises(StoppedEarly):  # at a step that is due, whose evaluation waits for the next segment
        train(stopped, steps=8)
    assert places(stopped) == [64]
    with pytest.raises(StoppedEarly):  # after the eleventh step, which writes nothing
        train(stopped, steps=2)
    assert places(stopped) == [64, 128]
    # The state after a crash: an evaluation of steps that the newest checkpoint does not have.
    newest = stopped.newest()
    (newest / "manifest.json").unlink()
    with open(stopped.output / "evaluations.jsonl", "a") as file:
        file.write('{"samples_seen": 176}\n{"samples_se')
    train(stopped)
    assert evaluations(stopped) == evaluations(straight)
    assert stopped.weights() == straight.weights()


def test_a_wall_clock_that_is_set_back_changes_no_duration(
    tiny_run: MakeRun, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(1)

    def hour_by_hour_back() -> float:
        return 2e9 - 3600.0 * next(hours)

    clock = SimpleNamespace(time=hour_by_hour_back, monotonic=time.monotonic)
    monkeypatch.setattr(periodic_evaluation, "time", clock)
    run = tiny_run(evaluation={**sets, "every": "4 steps"})
    with pytest.raises(StoppedEarly):
        train(run, steps=5)
    (recorded,) = read_evaluations(run.output)
    assert 0 < recorded.document["seconds"] < 3600


def test_a_set_that_is_missing_is_named_before_the_training(tiny_run: MakeRun, sets: dict[str, Any]) -> None:
    run = tiny_run(evaluation={"every": "4 steps", "retrieval": {"captions": "nowhere/0.tar"}})
    with pytest.raises(UserError, match=r"nowhere/0\.tar is not a file"):
        train(run)
    assert not run.metrics()


@pytest.mark.slow
def test_a_set_that_cannot_be_scored_is_recorded_and_does_not_end_the_training(
    tiny_run: MakeRun, sets: dict[str, Any], tmp_path: Path
) -> None:
    sets["zero_shot"]["seen"]["data"] = str(
        write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.cls", b"999")])
    )
    run = tiny_run(evaluation={**sets, "every": "100 steps"})
    train(run)
    assert [sorted(record) for record in evaluations(run)] == [["error", "samples_seen"]] * 2
    assert "holds no usable sample" in evaluations(run)[0]["error"]
    assert run.last_manifest()["progress"]["samples_seen"] == 792


CASES = [
    pytest.param(2, {"strategy": "fsdp"}, id="fsdp"),
    pytest.param(2, {"strategy": "ddp"}, id="ddp", marks=pytest.mark.long),
    pytest.param(4, {"strategy": "hsdp", "shard_size": 2}, id="hsdp", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "zero1"}, id="zero1", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "zero2"}, id="zero2", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "zero3"}, id="zero3", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "fairscale_oss"}, id="fairscale_oss", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "fsdp", "compile": True}, id="fsdp_compiled", marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "sharding"), CASES)
def test_every_strategy_evaluates_and_trains_as_without(
    tiny_run: MakeRun, sets: dict[str, Any], processes: int, sharding: dict[str, Any]
) -> None:
    """100 images make two batches, of which 4 processes get none or one; 16 captioned ones make a single."""
    phases = [{"name": "p", "samples": 128, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}]
    phases.append({**phases[0], "name": "q", "mask_ratio": 0.0, "samples": 64})
    settings: dict[str, Any] = {"phases": phases, "sharding": sharding}
    plain = tiny_run("plain", **settings)
    evaluated = tiny_run("evaluated", **settings, evaluation={**sets, "every": "3 steps"})
    for run in (plain, evaluated):
        done = run.train(processes=processes)
        assert done.returncode == 0, done.stderr
    assert evaluated.weights() == plain.weights()
    assert evaluated.metrics() == plain.metrics()
    assert places(evaluated) == [48, 96, 128, 144, 192]
    scores = by_command(evaluated)
    live = evaluations(evaluated)[-1]
    assert live["zero_shot"]["seen"]["samples"] == scores["zero_shot"]["seen"]["samples"] == 100
    assert live["zero_shot"]["seen"]["per_class"] == scores["zero_shot"]["seen"]["per_class"]
    assert live["retrieval"] == scores["retrieval"]
