"""A run and a Slurm that exist only in files, and Slurm's commands as stand-ins on a PATH."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_slurm import FakeSlurm as SlurmCommands
from support.run_in_files import FakeSlurm, RunInFiles
from support.submitting import WriteSite


@pytest.fixture
def run(tmp_path: Path) -> RunInFiles:
    return RunInFiles.new(tmp_path / "runs/first")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmCommands:
    """Slurm's commands as the only ones on PATH, next to those of the shell."""
    fake = SlurmCommands.make(tmp_path / "fake")
    monkeypatch.setenv("PATH", fake.path)
    monkeypatch.delenv("FLIPSCALE_SITE", raising=False)
    return fake


@pytest.fixture
def site(tmp_path: Path) -> WriteSite:
    def write(**changes: Any) -> Path:
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump({"name": "here", "gpus_per_node": 0, "cores_per_node": 4, **changes}))
        return path

    return write
