"""The run that disturbed runs are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.made_once import made_once
from support.tiny_run import TinyRun


@pytest.fixture(scope="session")
def straight(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The job of `tiny_run` as it is, trained by one process from start to end; only to be read."""

    def make(root: Path) -> None:
        root.mkdir()
        done = TinyRun.write(root, "straight", data_set).train()
        assert done.returncode == 0, done.stderr

    root = made_once("straight", make, tmp_path_factory)
    return TinyRun(root / "straight.yaml", root / "straight")
