"""Runs over shards of damaged and odd images: restarts, workers and libraries change no verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.shards import caption, write_tar
from support.time_limits import wait_until
from support.tiny_run import TinyRun
from support.verdicts import mutation

from flipscale.data.quarantine import read_quarantine
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger

SHARDS, SAMPLES = 3, 200  # per shard; about two thirds are unusable
SEED = 14


def write_mutated_shards(directory: Path) -> str:
    directory.mkdir()
    for shard in range(SHARDS):
        members = []
        for number in range(shard * SAMPLES, (shard + 1) * SAMPLES):
            members.append((f"{number:09d}.jpg", mutation(number, SEED)))
            members.append((f"{number:09d}.txt", caption(number).encode()))
        write_tar(directory / f"{shard}.tar", members)
    return str(directory / f"{{0..{SHARDS - 1}}}.tar")


def hide_libraries(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs that start from now on decode and resize with Pillow only."""
    directory.mkdir()
    for name in ("simplejpeg", "cykooz_resizer"):
        (directory / f"{name}.py").write_text(f"raise ImportError('{name} is hidden')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")]))


def disturb(run: TinyRun, number: signal.Signals, *overrides: str) -> int:
    """Start a run, signal it some steps later, and return its exit code."""
    before = len(run.metrics())
    process = run.start(*overrides)
    wait_until(lambda: len(run.metrics()) > before + 2 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    process.communicate(timeout=240)
    return process.returncode


def quarantined(run: TinyRun) -> set[tuple[int, int, str]]:
    records = read_quarantine(RunDirectory(run.output).quarantine)
    return {(record.shard, record.ordinal, record.reason) for record in records}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_restarts_workers_and_libraries_change_no_verdict(
    tiny_run: Callable[..., TinyRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": write_mutated_shards(tmp_path / "mutated"), "window": SAMPLES}
    straight, disturbed = tiny_run("straight", data=data), tiny_run("disturbed", data=data)
    done = straight.train()
    assert done.returncode == 0, done.stderr

    assert disturb(disturbed, signal.SIGTERM, "data.workers=2") == 75
    assert disturb(disturbed, signal.SIGKILL) == -signal.SIGKILL
    hide_libraries(tmp_path / "hidden", monkeypatch)
    assert disturb(disturbed, signal.SIGTERM) == 75
    done = disturbed.train("data.workers=1")
    assert done.returncode == 0, done.stderr

    assert [line.reason for line in read_ledger(disturbed.output)] == ["stopped", "killed", "stopped", "done"]
    progress = straight.last_manifest()["progress"]
    assert disturbed.last_manifest()["progress"] == progress
    assert progress["samples_seen"] == 792
    assert quarantined(disturbed) == quarantined(straight)
    assert len(quarantined(straight)) > 200
    for run in (straight, disturbed):
        audit = [sys.executable, "-m", "flipscale", "data", "audit", str(run.output)]
        audited = subprocess.run(audit, capture_output=True, text=True, check=False)
        assert audited.returncode == 0, audited.stdout + audited.stderr
