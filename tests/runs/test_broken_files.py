"""Every file of a run in every broken shape, and every command that reads a run: exact or refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from support.broken_files import FILES, SHAPES, Outcome, break_file, flipscale
from support.fake_slurm import FakeSlurm
from support.rehearsals import made_up_rehearsal
from support.spoiled import spoil_images
from support.tiny_run import TinyRun

PHASE = {"name": "all", "samples": 320, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}
SAMPLED = int(os.environ.get("FLIPSCALE_SHAPES", "10"))
CASES = [(name, shape) for name in FILES for shape in SHAPES]
COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "train": lambda run, out: ["train", run],
    "status": lambda run, out: ["status", run],
    "checkpoints": lambda run, out: ["checkpoints", run, "--verify"],
    "audit": lambda run, out: ["data", "audit", run],
    "eval": lambda run, out: ["eval", run],
    "export": lambda run, out: ["export", run, out],
    "report": lambda run, out: ["report", run, "--out", out],
    "submit": lambda run, out: ["submit", run / "job.yaml", f"output={run}"],
    "stop": lambda run, out: ["stop", run],
    "cancel": lambda run, out: ["cancel", run],
    "compare": lambda run, out: ["compare", run, "--out", out],
}


@dataclass(frozen=True)
class KilledRun:
    """A run that was submitted, stopped, and killed in its second segment, with unusable samples."""

    run: TinyRun
    stored: Path
    weights: dict[str, str]
    environment: dict[str, str]

    def outcome(self, command: str, name: str, shape: str) -> Outcome:
        """Run a command on the run as it was killed, with one broken file."""
        shutil.rmtree(self.run.output, ignore_errors=True)
        shutil.copytree(self.stored, self.run.output, symlinks=True)
        break_file(self.run.output, name, shape)

        out = self.stored.with_name("out")
        shutil.rmtree(out, ignore_errors=True)
        return flipscale(*COMMANDS[command](self.run.output, out), environment=self.environment)

    def fault(self, command: str, name: str, shape: str) -> str:
        """Return what is wrong with the outcome; empty if nothing is."""
        outcome = self.outcome(command, name, shape)
        if outcome.fault:
            return outcome.fault
        if outcome.code == 2 and len(outcome.errors.strip().splitlines()[-1]) < 20:
            return f"no sentence: {outcome.errors}"
        if command == "train" and outcome.code == 0 and self.run.weights() != self.weights:
            return "other weights"
        return ""


@pytest.fixture
def killed(tiny_run: Callable[..., TinyRun], data_set: Path, tmp_path: Path) -> KilledRun:
    shutil.copytree(data_set / "train", tmp_path / "train")
    spoil_images(tmp_path / "train" / "00001.tar")
    sets = {"every": "64 samples", "retrieval": {"captions": str(data_set / "val/00000.tar")}}
    run = tiny_run(
        phases=[PHASE],
        evaluation=sets,
        checkpoint={"every": ["64 samples"], "keep_last": 2},
        data={"train": str(tmp_path / "train/{00000..00002}.tar")},
    )
    environment = {"PATH": FakeSlurm.make(tmp_path / "slurm").path}

    stopped = flipscale("train", run.job, "--time-limit", "0s")
    assert stopped.code == 75, stopped.errors
    submitted = flipscale("submit", run.job, environment=environment)
    assert submitted.code == 0, submitted.errors
    (run.output / "rehearsal.json").write_text(json.dumps(asdict(made_up_rehearsal())))
    process = run.start()
    second = run.output / "checkpoints" / "samples_000000000128" / "manifest.json"
    while not second.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()

    stored = tmp_path / "stored"
    shutil.copytree(run.output, stored)
    for name in ("quarantine.jsonl", "segment.json", "evaluations.jsonl", "submissions.jsonl"):
        assert (stored / name).stat().st_size, name
    whole = run.train()
    assert whole.returncode == 0, whole.stderr
    return KilledRun(run, stored, run.weights(), environment)


@pytest.mark.slow
def test_some_broken_files(killed: KilledRun) -> None:
    every = [(command, *case) for command in COMMANDS for case in CASES]
    chosen = random.Random(SAMPLED).sample(every, SAMPLED)
    wrong = {case: killed.fault(*case) for case in chosen}
    assert {case: fault for case, fault in wrong.items() if fault} == {}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_broken_file(killed: KilledRun, command: str) -> None:
    wrong = {case: killed.fault(command, *case) for case in CASES}
    assert {case: fault for case, fault in wrong.items() if fault} == {}
