"""The notes of the batch script, written by bash and read by the next start and by readers of the ledger."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.broken_files import SHAPES
from support.run_in_files import RunInFiles
from support.time_limits import wait_until

from flipscale.orchestration.cluster.script_notes import note_lines
from flipscale.runs.directory import RunDirectory
from flipscale.runs.noted_starts import NotedStart, read_noted_starts, time_of_leaving


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory whose name is a challenge to the shell."""
    return RunDirectory(RunInFiles.new(tmp_path / "a b's $(touch stolen)").path)


def begin(run: RunDirectory, then: str, **variables: str) -> subprocess.Popen[bytes]:
    lines = [*note_lines(shlex.quote(str(run.path))), then]
    return subprocess.Popen(
        ["bash", "-c", "\n".join(lines)], env={"SLURM_JOB_ID": "7", "PATH": "/bin", **variables}
    )


def test_a_script_notes_its_beginning_and_its_end(run: RunDirectory) -> None:
    before = int(time.time()) - 1  # the shell's clock may lag behind Python's by a tick
    assert begin(run, "exit 75").wait(60) == 75
    assert begin(run, "exit 0", SLURM_RESTART_COUNT="2").wait(60) == 0
    assert begin(run, "", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3").wait(60) == 0

    starts = read_noted_starts(run)
    assert [start.attempt for start in starts] == ["7.0", "7.2", "5_3.0"]
    assert all(start.left and before <= start.began <= start.left <= time.time() for start in starts)
    assert time_of_leaving(run, "7.2") == starts[1].left
    assert time_of_leaving(run, "7.1") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_script_that_slurm_ends_leaves_a_note_unless_it_is_killed(
    run: RunDirectory, number: signal.Signals
) -> None:
    process = begin(run, "sleep 600 & wait")
    wait_until(lambda: read_noted_starts(run))
    process.send_signal(number)
    process.wait(60)
    (start,) = read_noted_starts(run)
    assert (start.left is not None) == (number == signal.SIGTERM)


@pytest.mark.parametrize("shape", SHAPES)
def test_damaged_notes_are_left_out(run: RunDirectory, shape: str) -> None:
    SHAPES[shape](run.starts, b"")
    assert read_noted_starts(run) == []
    assert time_of_leaving(run, "7.0") is None


def test_a_note_that_was_cut_costs_one_start(run: RunDirectory) -> None:
    run.starts.write_text(
        '{"attempt": "7.0", "began": 10}\n{"attempt": "7.0", "le{"attempt": "7.1", "began": 20}\n'
        '{"attempt": "7.1", "left": 30}\n{"attempt": "7.2", "began": 1e400}\n{"attempt": 7, "left": 40}\n'
        '{"attempt": "7.3", "began": 50}\n'
    )
    assert read_noted_starts(run) == [NotedStart("7.0", 10.0), NotedStart("7.3", 50.0)]
