"""`flipscale doctor`: what it finds on this machine, and on machines that lack something."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from flipscale.cli.doctor import examine
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World
from flipscale.errors import RunError, UserError
from flipscale.orchestration.checks import machine as doctor
from flipscale.orchestration.checks.finding import Check
from flipscale.orchestration.checks.node import _FILE_WRITE, _judge, check_node

CONFIGURATION = """JobRequeue = 0
KillWait = 30 sec
PreemptMode = REQUEUE
SLURM_VERSION = 22.05.8
AccountingStorageType = accounting_storage/none
SlurmctldParameters = preempt_send_user_signal
"""


@pytest.fixture
def alone() -> World:
    return World(0, 1, 0, 1, torch.device("cpu"), Placement(node="n1"))


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory as PATH."""
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    return commands


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def install(commands: Path, *names: str, prints: str = "") -> None:
    for name in names:
        (commands / name).write_text(f"#!/bin/sh\nprintf '%s' '{prints}'\n")
        (commands / name).chmod(0o755)


def test_this_machine(no_slurm, tmp_path, monkeypatch, capsys):
    # One of the libraries: the imports of the others take half a minute of a busy machine.
    monkeypatch.setattr(doctor, "_LIBRARIES", {"submitit": doctor._LIBRARIES["submitit"]})
    examine(tmp_path, node=False, as_json=True)
    checks = by_name([Check(**record) for record in json.loads(capsys.readouterr().out)])
    assert checks["torch"].found.startswith(torch.__version__)
    assert (checks["submitit"].outcome, checks["submitit"].found) == ("ok", metadata.version("submitit"))
    assert checks["cores"].found.split()[0] == str(len(os.sched_getaffinity(0)))
    assert checks["Slurm"].outcome == "skipped"
    assert str(tmp_path) in checks["disk"].found


def test_a_library_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(doctor._LIBRARIES, "broken", ("numpy", "raise ImportError('libfoo.so: none')", "it"))
    monkeypatch.setitem(doctor._LIBRARIES, "absent", ("no-such-distribution", "", "nothing"))
    broken, absent = doctor._library("broken"), doctor._library("absent")
    assert (broken.outcome, absent.outcome) == ("problem", "problem")
    assert broken.found.endswith("cannot be imported: ImportError: libfoo.so: none")
    assert absent.mend == "`pip install no-such-distribution` (nothing needs it)"


def test_slurm_is_described(no_slurm):
    install(no_slurm, "sbatch", "srun", "squeue", "scancel", "scontrol", prints=CONFIGURATION)
    checks = by_name(doctor._slurm())
    assert checks["Slurm"].found == "22.05.8"
    assert checks["JobRequeue"].outcome == "warning"
    assert checks["PreemptMode"].outcome == "ok"
    assert checks["preemption signal"].found == "the job's own signal"
    assert checks["accounting"].outcome == "warning"


def test_half_of_slurm_is_a_problem(no_slurm):
    install(no_slurm, "sbatch", "squeue")
    (check,) = doctor._slurm()
    assert check.outcome == "problem"
    assert check.found == "srun, scancel, scontrol not on PATH"


def test_few_open_files(monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        check = doctor._open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (check.outcome, check.found) == ("warning", "512")


def test_a_node_is_measured(alone, tmp_path):
    checks = by_name(check_node(alone, tmp_path))
    assert {name for name, check in checks.items() if check.outcome == "ok"} == {
        "matrix product", "host memory", "file write", "fsync",
    }  # fmt: skip
    assert checks["all-reduce"].outcome == "skipped"
    assert {check.node for check in checks.values() if check.outcome == "ok"} == {"n1"}
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_fails_the_node(alone, tmp_path):
    checks = by_name(check_node(alone, tmp_path / "none"))
    assert checks["file write"].outcome == "problem"
    assert "No such file" in checks["file write"].found
    assert checks["matrix product"].outcome == "ok"
    with pytest.raises(UserError, match="is no directory"):
        examine(tmp_path / "none", node=True, as_json=False)


def test_the_node_that_is_slower_than_the_others_is_named():
    checks = _judge(_FILE_WRITE, {"n1": [900.0], "n2": [1000.0, 300.0], "n3": [800.0], "n4": ["no space"]})
    assert [(check.node, check.outcome) for check in checks] == [
        ("n1", "ok"), ("n2", "problem"), ("n3", "ok"), ("n4", "problem"),
    ]  # fmt: skip
    assert checks[1].found == "300 MB/s with fsync (at least 5); the median node has 800"
    assert [check.outcome for check in _judge(_FILE_WRITE, {"n1": [1.0]})] == ["problem"]


def test_two_processes_measure_their_all_reduce(tmp_path):
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
    checks = by_name([Check(**record) for record in json.loads(done.stdout)])
    assert checks["all-reduce"].outcome == "ok"
    assert "GB/s" in checks["all-reduce"].found


def test_a_problem_ends_the_command_with_1(no_slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_LIBRARIES", {})
    install(no_slurm, "sbatch")
    with pytest.raises(RunError, match=r"1 of \d+ checks failed: Slurm"):
        examine(tmp_path, node=False, as_json=True)
