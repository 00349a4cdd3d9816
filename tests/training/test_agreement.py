"""The facts of a step are exchanged during the next step: what may come late, and what stays exact."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.spawned import spawn
from support.spoiled import spoil_images
from support.stop_at import NEVER, StopAt
from support.time_limits import wait_until
from support.tiny_run import TinyRun

from flipscale.config import load_job
from flipscale.data.quarantine import Quarantine, read_quarantine
from flipscale.distributed.world import World
from flipscale.errors import StoppedEarly
from flipscale.models.flip import FLIP
from flipscale.orchestration.segments import stop_requests
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory, run_directory
from flipscale.runs.ledger import read_ledger
from flipscale.training import saver, trainer
from flipscale.training.check_job import check_job
from flipscale.training.update import Updater

MakeRun = Callable[..., TinyRun]
DDP = {"strategy": "ddp"}  # its forward has no collectives
NO_STOP = partial(StopAt, steps=NEVER)
PHASE = {"name": "all", "samples": 320, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}
LATE = 5  # a step after which nothing is written
CASES = {  # the steps in which rank 0 and rank 1 are asked to stop, and the step after which both do
    (5, NEVER): 6,
    (NEVER, 7): 8,
    (10, 11): 11,
    (11, 10): 11,
    (9, NEVER): 9,  # a step that is logged
    (NEVER, 8): 8,  # a step after which a checkpoint is due
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def world_of(rank: int, size: int) -> World:
    return World(rank, size, rank, size, torch.device("cpu"))


def train(job_file: Path, world: World, stop: Callable[[RunDirectory], StopRequests]) -> None:
    job = load_job(job_file)
    run = run_directory(job)
    trainer.train(job, check_job(job, world.size), Segment(run, world, stop(run), hang=job.hang))


def train_here(run: TinyRun, stop: Callable[[RunDirectory], StopRequests] = NO_STOP) -> None:
    train(run.job, world_of(0, 1), stop)


def saves_of(run: TinyRun) -> set[int]:
    """Return the samples at which the run has checkpoints."""
    return {int(path.name.split("_")[1]) for path in (run.output / "checkpoints").glob("samples_*")}


class LateFacts(StopAt):
    """Adds this process's facts of one step only when a file exists."""

    def __init__(self, run: RunDirectory, step: int, file: Path) -> None:
        super().__init__(run, NEVER)
        self._looks = -1  # training looks once before the first step
        self._step = step
        self._file = file

    def counts(self) -> list[int]:
        self._looks += 1
        if self._looks == self._step:
            wait_until(self._file.exists, seconds=30)
        return super().counts()


def train_with_late_facts(rank: int, size: int, job: Path, forwarded: Path) -> None:
    """Train with a rank 1 whose facts of a step wait for rank 0's forward of the next step."""
    if rank == 1:
        train(job, world_of(rank, size), lambda run: LateFacts(run, LATE, forwarded))
        return

    forward = FLIP.forward
    calls = 0

    def counted(self: FLIP, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        features = forward(self, *args, **kwargs)
        calls += 1
        if calls == LATE + 1:
            forwarded.touch()
        return features

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FLIP, "forward", counted)
        train(job, world_of(rank, size), NO_STOP)


@pytest.mark.slow
def test_next_step_does_not_wait_for_a_process_whose_facts_are_late(
    tiny_run: MakeRun, tmp_path: Path
) -> None:
    run = tiny_run(phases=[PHASE], sharding=DDP)
    worker = partial(train_with_late_facts, job=run.job, forwarded=tmp_path / "forwarded")
    spawn(worker, 2, tmp_path)
    assert run.last_manifest()["progress"]["samples_seen"] == 320
    assert audit(RunDirectory(run.output)).proven


def stop_at_different_steps(rank: int, size: int, jobs: dict[tuple[int, int], Path]) -> None:
    for requests, job in jobs.items():
        with pytest.raises(StoppedEarly) as stopped:
            train(job, world_of(rank, size), partial(StopAt, steps=requests[rank]))
        job.with_suffix(f".{rank}").write_text(str(stopped.value))


@pytest.mark.slow
def test_requests_of_different_processes_stop_all_after_the_same_step(
    tiny_run: MakeRun, tmp_path: Path
) -> None:
    runs = {requests: tiny_run(f"stopped{number}") for number, requests in enumerate(CASES)}
    jobs = {requests: run.job for requests, run in runs.items()}
    spawn(partial(stop_at_different_steps, jobs=jobs), 2, tmp_path)

    for requests, steps in CASES.items():
        run = runs[requests]
        ends = [run.job.with_suffix(f".{rank}").read_text() for rank in (0, 1)]
        assert ends[0] == ends[1]
        assert f"at {steps * 16} of 792 samples" in ends[0]
        assert run.last_manifest()["progress"]["samples_seen"] == steps * 16
        assert audit(RunDirectory(run.output)).proven


@pytest.mark.parametrize(("passed_in", "end"), [(4, 4), (5, 6), (10, 11)])
def test_step_after_the_deadline_is_the_last(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, passed_in: int, end: int
) -> None:
    """From the deadline to the save there is the rest of a step, and one more step."""
    clock = Clock(monkeypatch, stop_requests)
    clock.tick_at_each_step(10.0)
    run = tiny_run()
    with pytest.raises(StoppedEarly, match="deadline"):
        train_here(run, lambda directory: StopRequests(directory.stop_file, deadline=10.0 * passed_in - 5.0))
    assert run.last_manifest()["progress"]["samples_seen"] == end * 16


def test_clock_saves_one_step_later_and_steps_save_where_they_did(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, saver)
    clock.tick_at_each_step(900.0)  # an hour has passed in the fourth step
    run = tiny_run(checkpoint={"every": ["8 steps", "1h"], "keep_last": 100}, phases=[PHASE])
    train_here(run)

    # The fifth step; every eighth one; the twelfth, which is logged; the last.
    assert saves_of(run) == {80, 128, 192, 256, 320}
    assert audit(RunDirectory(run.output)).proven


@pytest.mark.slow
def test_bad_samples_are_recorded_where_something_is_written(
    tiny_run: MakeRun, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes wait for each other's records: in large batches, some are bad in nearly every step."""
    shards = shutil.copytree(data_set / "train", tmp_path / "train")
    for shard in shards.glob("*.tar"):
        spoil_images(shard)
    judged: list[int] = []
    monkeypatch.setattr(Quarantine, "judge", lambda self, samples, limit: judged.append(samples))

    kept = {"every": ["64 samples"], "keep_last": 100}
    run = tiny_run(phases=[PHASE], checkpoint=kept, data={"train": str(shards / "{00000..00002}.tar")})
    train_here(run)

    bad = read_quarantine(run.output / "quarantine.jsonl")
    written = saves_of(run) | {line["samples"] for line in run.metrics()}
    assert len(bad) > len(judged) > 0
    assert set(judged) <= written
    assert audit(RunDirectory(run.output)).proven


@pytest.mark.slow
@pytest.mark.parametrize(("step", "lost"), [(6, 16), (11, 32), (10, 16)])
def test_crash_before_the_facts_of_a_step_arrive_leaves_no_trace(
    tiny_run: MakeRun, straight: TinyRun, monkeypatch: pytest.MonkeyPatch, step: int, lost: int
) -> None:
    """The step before the crash counts as trained, also if its facts are still under way."""
    run = tiny_run()
    with monkeypatch.context() as patched:
        patched.setattr(Updater, "update", failing_at(step))
        with pytest.raises(ArithmeticError):
            train_here(run)

    train_here(run)
    crashed, done = read_ledger(run.output)
    assert (crashed.reason, crashed.lost_samples, done.reason) == ("code", lost, "done")
    assert run.weights() == straight.weights()
    assert run.metrics() == straight.metrics()
    assert run.last_manifest()["progress"] == straight.last_manifest()["progress"]
    assert audit(RunDirectory(run.output)).proven


def failing_at(step: int) -> Callable[..., Any]:
    """Return the update of a step, which fails at one of them."""
    update = Updater.update

    def failing(updater: Updater, stage: Any, batch: Any) -> Any:
        if batch.step.stop == step * 16:
            raise ArithmeticError("a defect")
        return update(updater, stage, batch)

    return failing


class Clock:
    """A clock of one module, which moves only with the steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.now = 0.0
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def tick_at_each_step(self, seconds: float) -> None:
        update = Updater.update

        def ticking(updater: Updater, *args: Any) -> Any:
            self.now += seconds
            return update(updater, *args)

        self._monkeypatch.setattr(Updater, "update", ticking)
