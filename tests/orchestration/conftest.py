"""A run and a Slurm that exist in files alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.run_in_files import FakeSlurm, RunInFiles


@pytest.fixture
def run(tmp_path: Path) -> RunInFiles:
    return RunInFiles.new(tmp_path / "runs/first")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)
