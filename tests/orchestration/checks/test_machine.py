"""`flipscale doctor` on this machine, and on machines that lack something."""

from __future__ import annotations

import json
import os
import resource
from importlib import metadata
from pathlib import Path

import pytest
import torch

from flipscale.cli.doctor import doctor
from flipscale.errors import RunError
from flipscale.orchestration.checks import machine
from flipscale.orchestration.checks.finding import Finding

CONFIGURATION = """JobRequeue = 0
KillWait = 30 sec
PreemptMode = REQUEUE
SLURM_VERSION = 22.05.8
AccountingStorageType = accounting_storage/none
SlurmctldParameters = preempt_send_user_signal
"""


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory as PATH."""
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    return commands


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def install(commands: Path, *names: str, prints: str = "") -> None:
    for name in names:
        (commands / name).write_text(f"#!/bin/sh\nprintf '%s' '{prints}'\n")
        (commands / name).chmod(0o755)


def test_this_machine(no_slurm, tmp_path, monkeypatch, capsys):
    # One of the libraries: the imports of the others take half a minute of a busy machine.
    monkeypatch.setattr(machine, "_LIBRARIES", {"submitit": machine._LIBRARIES["submitit"]})
    doctor(directory=tmp_path, node=False, as_json=True)

    records = json.loads(capsys.readouterr().out)
    assert {tuple(record) for record in records} == {("name", "outcome", "found", "mend", "node")}
    checks = {record["name"]: record for record in records}
    assert checks["torch"]["found"].startswith(torch.__version__)
    submitit = checks["submitit"]
    assert (submitit["outcome"], submitit["found"]) == ("ok", metadata.version("submitit"))
    assert checks["cores"]["found"].split()[0] == str(len(os.sched_getaffinity(0)))
    assert checks["Slurm"]["outcome"] == "skipped"
    assert str(tmp_path) in checks["disk"]["found"]


def test_a_library_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(machine._LIBRARIES, "broken", ("numpy", "raise ImportError('libfoo.so: none')", "it"))
    monkeypatch.setitem(machine._LIBRARIES, "absent", ("no-such-distribution", "", "nothing"))
    broken = machine._library("broken")
    absent = machine._library("absent")

    assert (broken.level, absent.level) == ("error", "error")
    assert broken.text.endswith("cannot be imported: ImportError: libfoo.so: none")
    assert absent.fix == "`pip install no-such-distribution` (nothing needs it)"


def test_a_machine_that_cannot_compile(no_slurm, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    missing = machine._compiler()
    install(no_slurm, "g++")

    assert (missing.level, missing.text) == ("warning", "none")
    assert "this machine has no g++" in missing.fix
    assert machine._compiler().level == "ok"


def test_slurm_is_described(no_slurm):
    install(no_slurm, "sbatch", "srun", "squeue", "scancel", "scontrol", prints=CONFIGURATION)
    checks = by_name(machine._slurm())
    assert checks["Slurm"].text == "22.05.8"
    assert checks["JobRequeue"].level == "warning"
    assert checks["PreemptMode"].level == "ok"
    assert checks["preemption signal"].text == "the job's own signal"
    assert checks["accounting"].level == "warning"


def test_half_of_slurm_is_a_problem(no_slurm):
    install(no_slurm, "sbatch", "squeue")
    (check,) = machine._slurm()
    assert check.level == "error"
    assert check.text == "srun, scancel, scontrol not on PATH"


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (512, 1024, ("warning", "at most 1024")),
        (1024, 4096, ("ok", "at most 4096")),  # training raises its soft limit
        (1024, resource.RLIM_INFINITY, ("ok", "no limit")),
    ],
)
def test_hard_limit_of_open_files_is_judged(soft, hard, expected, monkeypatch):
    # A process cannot take back a lower hard limit.
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    check = machine._open_files()
    assert (check.level, check.text) == expected
    assert ("`ulimit -Hn`) to 4096" in check.fix) == (check.level == "warning")


def test_a_problem_ends_the_command_with_1(no_slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_LIBRARIES", {})
    install(no_slurm, "sbatch")
    with pytest.raises(RunError, match=r"1 of \d+ checks failed: Slurm"):
        doctor(directory=tmp_path, node=False, as_json=True)
