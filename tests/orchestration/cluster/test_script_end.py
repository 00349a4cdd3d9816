"""The last lines of the batch script, run by bash with Slurm's commands as stand-ins."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from flipscale.orchestration.cluster.script_end import REFUSED, last_lines
from flipscale.runs.failures import Failure
from flipscale.runs.last_word import write_last_word

TOOLS = ("bash", "grep")
REQUEUE = "scontrol requeue 7"
LAST_RESORT = "python -m flipscale.orchestration.segments.last_resort"


@dataclass(frozen=True)
class Script:
    """The end of a job's script, and the commands that it may call, which note how."""

    root: Path
    run: Path

    def end(self, code: int, *, requeues: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the last lines after an srun that ended with `code`."""
        lines = last_lines(shlex.quote(str(self.run)), "python", requeues=requeues)
        environment = {"PATH": str(self.root / "bin"), "SLURM_JOB_ID": "7", **variables}
        script = "\n".join([f"(exit {code})", "", "# teardown", *lines])
        return subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def calls(self) -> list[str]:
        """Return the commands that the script called."""
        noted = self.root / "calls"
        return noted.read_text().splitlines() if noted.exists() else []

    def refuses(self, name: str = "scontrol", code: int = 1) -> None:
        """Let a command fail from now on."""
        self._command(name, f"exit {code}")

    def blames(self, file: str) -> None:
        """Let a file of the run blame a node for the end of a segment."""
        (self.run / file).parent.mkdir(parents=True, exist_ok=True)
        (self.run / file).write_text(json.dumps({"attempt": "7.0", "suspects": ["n2"]}) + "\n")

    def _command(self, name: str, end: str) -> None:
        script = self.root / "bin" / name
        script.write_text(f'#!/bin/bash\necho {name} "$@" >> {shlex.quote(str(self.root))}/calls\n{end}\n')
        script.chmod(0o755)

    @classmethod
    def make(cls, root: Path) -> Script:
        """Make the stand-ins, and a run directory whose name is a challenge to the shell."""
        script = cls(root, root / "a b's $(touch stolen)")
        (root / "bin").mkdir()
        script.run.mkdir()
        for tool in TOOLS:
            (root / "bin" / tool).symlink_to(f"/bin/{tool}")
        for name in ("scontrol", "python"):
            script._command(name, "")
        return script


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script.make(tmp_path)


@pytest.mark.parametrize("code", [1, 75, 137, 143, 168])
def test_end_without_a_word_asks_for_another_start(script: Script, code: int) -> None:
    done = script.end(code)
    assert done.returncode == code
    assert script.calls() == [REQUEUE]
    assert f"code {code}" in done.stderr
    assert not (script.root / "stolen").exists()


@pytest.mark.parametrize("code", [0, 2, 126, 127])
def test_end_that_explains_itself_asks_for_nothing(script: Script, code: int) -> None:
    assert script.end(code).returncode == code
    assert script.calls() == []


def test_last_word_of_this_start_is_obeyed(script: Script) -> None:
    write_last_word(script.run, "7.2", Failure("code", "a defect"))
    write_last_word(script.run, "7.2", Failure("lost_process", "the consequence"))
    assert json.loads((script.run / "heartbeats/7.2/last_word.json").read_text())["kind"] == "code"

    assert script.end(137, SLURM_RESTART_COUNT="2").returncode == 137
    assert script.calls() == []

    script.end(137, SLURM_RESTART_COUNT="1")
    assert script.calls() == [REQUEUE]


@pytest.mark.parametrize("code", [1, 75])
def test_job_that_a_person_stopped_is_completed(script: Script, code: int) -> None:
    write_last_word(script.run, "7.0", Failure("stopped", "stopped on request (stop_file)"))
    assert script.end(code).returncode == 0
    assert script.calls() == []


def test_a_word_in_a_message_does_not_decide_the_kind(script: Script) -> None:
    write_last_word(script.run, "7.0", Failure("code", 'KeyError: "kind": "stopped"'))
    assert script.end(1).returncode == 1


def test_element_of_an_array_looks_for_its_own_last_word(script: Script) -> None:
    write_last_word(script.run, "5_3.0", Failure("code", "a defect"))
    script.end(137, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")
    assert script.calls() == []

    script.end(137, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="4")
    assert script.calls() == [REQUEUE]


@pytest.mark.parametrize("file", ["segment.json", "ledger.jsonl"])
def test_four_starts_in_a_row_without_a_segment_are_enough(script: Script, file: str) -> None:
    assert "four starts" not in script.end(137, SLURM_RESTART_COUNT="2").stderr
    assert script.calls() == [REQUEUE]

    (script.run / file).write_text(json.dumps({"segment": 0, "attempt": "7.6"}) + "\n")
    for restarts, asked in (("3", 1), ("9", 2), ("10", 2), ("6", 3)):
        done = script.end(137, SLURM_RESTART_COUNT=restarts)
        assert len(script.calls()) == asked, restarts
        assert ("four starts" in done.stderr) == (restarts in ("3", "10"))
        assert done.returncode == 137


def test_refused_requeue_falls_back_to_a_job_that_follows(script: Script) -> None:
    script.refuses()
    assert script.end(137).returncode == 137
    assert script.calls() == [REQUEUE, f"{LAST_RESORT} {script.run}"]


@pytest.mark.parametrize("file", ["ledger.jsonl", "heartbeats/7.0/rank_00001.json"])
def test_python_asks_if_nodes_are_blamed(script: Script, file: str) -> None:
    """A bare requeue would take no node away from the job."""
    script.blames(file)
    assert script.end(137).returncode == 137
    assert script.calls() == [f"{LAST_RESORT} {script.run}"]


@pytest.mark.parametrize(("code", "asked"), [(1, [REQUEUE]), (127, [REQUEUE]), (REFUSED, [])])
def test_python_that_fails_does_not_keep_a_job_from_its_requeue(
    script: Script, code: int, asked: list[str]
) -> None:
    script.blames("ledger.jsonl")
    script.refuses("python", code)
    script.end(137)
    assert script.calls() == [f"{LAST_RESORT} {script.run}", *asked]


def test_without_scontrol_a_job_follows(script: Script) -> None:
    (script.root / "bin/scontrol").unlink()
    script.end(137)
    assert script.calls() == [f"{LAST_RESORT} {script.run}"]


def test_chain_never_asks_for_a_requeue(script: Script) -> None:
    script.end(137, requeues=False)
    assert script.calls() == [f"{LAST_RESORT} {script.run}"]
