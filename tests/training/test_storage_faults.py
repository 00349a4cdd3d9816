"""A file system that fails, or a process that is killed, at any step of a run: exact or refused."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.broken_files import flipscale
from support.storage_faults import KILL, KINDS, Fault, faulty_storage, run_with, steps_of
from support.tiny_run import TinyRun

from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import LedgerLine, read_ledger

MakeRun = Callable[..., TinyRun]
PHASE = {"name": "all", "samples": 64, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}
SHORT: dict[str, Any] = {
    "phases": [PHASE],
    "checkpoint": {"every": ["1 steps"], "keep_last": 2},
    "logging": {"every": "2 steps", "tensorboard": False},
}
"""Four steps with a checkpoint each, so that old ones are pruned."""
PARTS = 4  # of all faults, so that several processes can share them
SAMPLED = int(os.environ.get("FLIPSCALE_FAULTS", "0"))


@pytest.fixture(scope="module", autouse=True)
def _faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with faulty_storage(tmp_path_factory.mktemp("library")):
        yield


@pytest.fixture
def undisturbed(tiny_run: MakeRun) -> TinyRun:
    run = tiny_run("undisturbed", **SHORT)
    done = run.train()
    assert done.returncode == 0, done.stderr
    return run


def check_ledger(lines: list[LedgerLine], samples: int) -> None:
    """Check that the segments follow each other, and that the end is booked once."""
    assert [line.segment for line in lines] == list(range(len(lines)))
    place = 0
    for line in lines:
        assert line.samples_from == place
        place = line.samples_to
    assert place == samples
    assert len({line.attempt for line in lines}) == len(lines)  # no start is booked twice
    assert sum(line.reason == "done" and line.samples_to > line.samples_from for line in lines) <= 1
    assert "rolled_back" not in [line.reason for line in lines]


def check_fault(make: MakeRun, undisturbed: TinyRun, fault: Fault) -> str:
    """Return what is wrong after a fault and the start that follows it; empty if nothing is."""
    run = make(f"fault_{fault.kind}_{fault.step}", **SHORT)
    outcome = run_with(fault, run.output, "train", run.job)
    if outcome.code == -signal.SIGKILL and fault.kind == KILL:
        pass
    elif outcome.fault:
        return f"{outcome.fault} ({outcome.code})"

    after = flipscale("train", run.job)
    if after.code or after.fault:
        return f"the start after it: {after.code} {after.errors[-1500:]}"
    try:
        assert run.weights() == undisturbed.weights(), "other weights"
        assert run.metrics() == undisturbed.metrics(), "other metrics"
        assert run.last_manifest()["progress"] == undisturbed.last_manifest()["progress"]
        check_ledger(read_ledger(run.output), 64)
        assert audit(RunDirectory(run.output)).proven
    except AssertionError as error:
        reasons = [(line.samples_from, line.samples_to, line.reason) for line in read_ledger(run.output)]
        return f"{str(error)[:500]}; the ledger: {reasons}; it said: {outcome.errors[-300:]}"
    return ""


def faults(run: TinyRun, log: Path, each: int | None, seed: int = 0) -> list[Fault]:
    """Return the faults of a run: of all its steps, or of some of them."""
    steps = steps_of(run.output, log, "train", run.job)
    assert len(steps) > 60, steps
    every = [Fault(number, kind) for number in range(1, len(steps) + 1) for kind in KINDS]
    return every if each is None else random.Random(seed).sample(every, each)


@pytest.mark.slow
def test_some_steps_of_a_run(tiny_run: MakeRun, undisturbed: TinyRun, tmp_path: Path) -> None:
    chosen = faults(tiny_run("counted", **SHORT), tmp_path / "steps", SAMPLED or 5)
    wrong = {str(fault): check_fault(tiny_run, undisturbed, fault) for fault in chosen}
    assert {fault: problem for fault, problem in wrong.items() if problem} == {}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.warm
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_step_of_a_run(tiny_run: MakeRun, undisturbed: TinyRun, tmp_path: Path, part: int) -> None:
    chosen = faults(tiny_run("counted", **SHORT), tmp_path / "steps", None)[part::PARTS]
    wrong = {str(fault): check_fault(tiny_run, undisturbed, fault) for fault in chosen}
    assert {fault: problem for fault, problem in wrong.items() if problem} == {}


def command_steps(data_set: Path, tmp_path: Path) -> dict[str, Callable[[Path], list[object]]]:
    """Return commands that write, by what they write; each takes the path that it writes to."""
    shards = data_set / "val/00000.tar"
    return {
        "shards": lambda out: ["data", "check", shards, "--fix", out, "--workers", 1],
        "set": lambda out: ["data", "synth", out, "--train", 8, "--val", 2, "--test", 0, "--size", 32],
        "vocab.txt": lambda out: ["data", "vocab", shards, out, "--size", 300],
        "index": lambda out: ["data", "index", shards, out],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shards", "set", "vocab.txt", "index"])
def test_command_that_fails_half_way_can_be_repeated(data_set: Path, tmp_path: Path, name: str) -> None:
    command = command_steps(data_set, tmp_path)[name]
    whole = tmp_path / "whole" / name
    whole.parent.mkdir()
    steps = steps_of(whole.parent, tmp_path / "steps", *command(whole))
    every = [Fault(number, kind) for number in range(1, len(steps) + 1) for kind in KINDS]

    for fault in random.Random(name).sample(every, SAMPLED or 4):
        out = tmp_path / f"{fault.kind}_{fault.step}" / name
        out.parent.mkdir()
        outcome = run_with(fault, out.parent, *command(out))
        assert outcome.code == -signal.SIGKILL or not outcome.fault, f"{fault}: {outcome.fault}"
        if name != "index":  # which continues what was begun
            assert not out.exists() or contents(out) in ({}, contents(whole)), fault

        if name == "index" or not out.exists() or contents(out) == {}:
            again = flipscale(*command(out))
            assert (again.code, again.fault) == (0, ""), f"{fault}: {again.errors}"
        assert contents(out) == contents(whole), fault
        assert [entry.name for entry in out.parent.iterdir()] == [name], fault


def contents(path: Path) -> dict[str, bytes]:
    """Return the files at or below a path by their relative paths."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
    }
