"""A run directory that version 0.1.0 wrote is shown, audited, resumed, reported and exported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger
from flipscale.runs.manifest import committed_checkpoints, read_manifest
from flipscale.runs.metrics import read_metrics

FIXTURE = Path(__file__).parent / "fixtures" / "run_0_1_0"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text())
BINARY = (".bin", ".safetensors", ".tar")


def flipscale(*arguments: object) -> str:
    """Run a command of flipscale and return what it prints."""
    command = [sys.executable, "-m", "flipscale", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Copy the run, which was killed in its third segment, and set its paths to those of the copy."""
    root = tmp_path_factory.mktemp("run_0_1_0") / "copy"
    shutil.copytree(FIXTURE, root)
    for path in root.rglob("*"):
        if path.is_file() and path.suffix not in BINARY:
            path.write_text(path.read_text().replace("/fixture/", f"{root}/"))

    # The index holds the shards' modification times, which a checkout does not keep.
    index = json.loads((root / "run" / "index" / "index.json").read_text())
    for name, version in zip(index["paths"], index["versions"], strict=True):
        os.utime(name, ns=(int(version), int(version)))
    return RunDirectory(root / "run")


def test_its_files_name_no_machine():
    names = [path for path in FIXTURE.rglob("*") if path.is_file() and path.suffix not in BINARY]
    assert names
    for path in names:
        for part in ("/tmp/", "/home/", "/root/", str(Path(__file__).resolve().parents[1])):
            assert part not in path.read_text(), path


@pytest.mark.slow
def test_it_is_shown_audited_resumed_reported_and_exported(run: RunDirectory, tmp_path: Path):
    # Before the start: two closed segments, and one that was killed.
    status = json.loads(flipscale("status", run.path, "--json"))
    assert status["state"] == "lost"
    assert status["checkpoint"]["samples"] == 128
    assert [segment["reason"] for segment in status["segments"]] == ["stopped", "stopped", "lost"]
    assert status["quarantined"] == 2
    assert "DIFFERENT" not in flipscale("data", "audit", run.path)

    flipscale("train", run.path)

    # Version 0.1.0 itself reached the same end.
    (*_, last) = read_ledger(run.path)
    assert (last.samples_to, last.digest) == (EXPECTED["samples_seen"], EXPECTED["digest"])
    assert [line.reason for line in read_ledger(run.path)] == EXPECTED["reasons"]
    manifest = read_manifest(committed_checkpoints(run)[-1].path)
    assert manifest.progress.digest.hex() == EXPECTED["digest"]
    (*_, line) = read_metrics(run.path)
    record = {key: value for key, value in line.to_record().items() if key not in line.timing}
    assert record == pytest.approx(EXPECTED["last_metrics"], rel=1e-3)

    audited = flipscale("data", "audit", run.path)
    assert EXPECTED["digest"] in audited
    assert "DIFFERENT" not in audited
    assert json.loads(flipscale("status", run.path, "--json"))["state"] == "done"

    flipscale("report", run.path, "--out", tmp_path / "report")
    assert any(path.suffix == ".html" for path in (tmp_path / "report").iterdir())
    flipscale("export", run.path, tmp_path / "export")
    assert (tmp_path / "export" / "open_clip_config.json").is_file()
