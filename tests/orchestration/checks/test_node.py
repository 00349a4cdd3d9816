"""`flipscale doctor --node`: the speeds of every node, and the verdict on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flipscale.cli.doctor import doctor
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.orchestration.checks.finding import Finding
from flipscale.orchestration.checks.node import _FILE_WRITE, _judge, _reduce_of, measure_nodes


@pytest.fixture
def alone() -> World:
    return World(0, 1, 0, 1, torch.device("cpu"), Placement(node="n1"))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_node_is_measured(alone: World, tmp_path: Path):
    findings = by_name(measure_nodes(alone, tmp_path))
    assert {name for name, finding in findings.items() if finding.level == "ok"} == {
        "matrix product", "host memory", "file write", "fsync",
    }  # fmt: skip
    assert findings["all-reduce"].level == "skipped"
    assert {finding.node for finding in findings.values() if finding.level == "ok"} == {"n1"}
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_fails_the_node(alone: World, tmp_path: Path):
    findings = by_name(measure_nodes(alone, tmp_path / "none"))
    assert findings["file write"].level == "error"
    assert "No such file" in findings["file write"].text
    assert findings["matrix product"].level == "ok"

    with pytest.raises(UserError, match=r"is (no|not a) directory"):
        doctor(directory=tmp_path / "none", node=True, as_json=False)


def test_the_node_that_is_slower_than_the_others_is_named():
    findings = _judge(_FILE_WRITE, {"n1": [900.0], "n2": [1000.0, 300.0], "n3": [800.0], "n4": ["no space"]})
    assert [(finding.node, finding.level) for finding in findings] == [
        ("n1", "ok"), ("n2", "error"), ("n3", "ok"), ("n4", "error"),
    ]  # fmt: skip
    assert findings[1].text == "300 MB/s with fsync (at least 5); the median node has 800"
    assert [finding.level for finding in _judge(_FILE_WRITE, {"n1": [1.0]})] == ["error"]


def test_all_processes_take_the_limit_of_the_slowest_links(monkeypatch: pytest.MonkeyPatch):
    """With two kinds of GPU in a job; the machines of the tests have at most one."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(World, "gather", lambda world, value: [value, 19e9])
    on_gpu = World(0, 16, 0, 8, torch.device("cuda", 0), Placement(node="n1"))
    assert _reduce_of(on_gpu).describe(12.0) == "12 GB/s (at least 19)"
    assert _reduce_of(on_gpu).fails(12.0)


@pytest.mark.slow
def test_two_processes_measure_their_all_reduce(tmp_path: Path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    done = subprocess.run(
        [*launch, "flipscale", "doctor", "--node", "--json", "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    checks = {record["name"]: record for record in json.loads(done.stdout)}
    assert checks["all-reduce"]["outcome"] == "ok"
    assert "GB/s" in checks["all-reduce"]["found"]
