"""`flipscale stop` and `flipscale cancel`, on real processes and on what is only queued."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.run_in_files import RunInFiles
from support.status_times import ago, utc
from support.time_limits import wait_until

from flipscale.cli.cancel import cancel
from flipscale.cli.stop import stop
from flipscale.errors import RunError, UserError
from flipscale.orchestration.cluster.local_executor import end_controller
from flipscale.orchestration.status.liveness import SlurmView, here
from flipscale.orchestration.status.run_status import read_status
from flipscale.processes import mark_of

LONG_PHASE = {"name": "masked", "samples": 800_000, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}
# Trains in the run that its argument names, as far as an observer sees, and ends with 75 on SIGTERM.
LISTENER = """
import signal, sys
from pathlib import Path
import torch
from flipscale.config import Hang
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World
from flipscale.orchestration.segments.watchdog import Watchdog
from flipscale.orchestration.status.liveness import here

signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
world = World(0, 2, 0, 1, torch.device("cpu"), Placement(node=here()))
Watchdog(Path(sys.argv[1]), world, "here.1", Hang(), lambda failure: None).start(0)
print("listening", flush=True)
signal.pause()
"""


def test_a_run_that_is_killed_and_then_stopped(tiny_run, capsys):
    tiny = tiny_run(phases=[LONG_PHASE])
    process = tiny.start()
    wait_until((tiny.output / "metrics.jsonl").exists)
    assert read_status(tiny.output, SlurmView()).state in ("training", "saving")
    process.kill()
    process.communicate()
    status = read_status(tiny.output, SlurmView())
    assert (status.state, status.segments[-1].reason) == ("lost", "lost")
    assert status.samples == (status.checkpoint.samples if status.checkpoint else 0)
    assert status.next.endswith("`flipscale train JOB` resumes it from the last checkpoint")
    stop(tiny.output, wait=False)
    assert "nothing of" in capsys.readouterr().out
    assert not (tiny.output / "STOP").exists()

    process = tiny.start()
    wait_until(lambda: read_status(tiny.output, SlurmView()).checkpoint)
    stop(tiny.output, wait=True)
    assert process.wait(timeout=60) == 75
    process.communicate()
    printed = capsys.readouterr().out
    assert "saves and ends within two steps" in printed
    assert printed.endswith("it was stopped; `flipscale train JOB` resumes it\n")
    status = read_status(tiny.output, SlurmView())
    assert [segment.reason for segment in status.segments] == ["killed", "stopped"]
    assert status.samples == status.segments[-1].samples_to > 0


def test_a_queued_job_is_taken_from_the_queue(run, slurm, capsys):
    run.submitted("7_1")
    slurm.answers("7_[0-3]|PENDING|Priority|")
    stop(run.path, wait=False)
    assert slurm.calls()[1:] == ["scancel --state=PENDING 7_1"]
    assert (run.path / "STOP").exists()
    assert "Slurm job 7_1 is taken from the queue" in capsys.readouterr().out


def test_a_running_job_is_left_to_the_stop_file_and_its_successor_cancelled(run, slurm, capsys):
    run.submitted("7").submitted("8", dependency="7")
    slurm.answers("7|RUNNING|None|n1", "8|PENDING|Dependency|")
    stop(run.path, wait=False)
    assert slurm.calls()[1:] == ["scancel --state=PENDING 8"]
    assert "saves and ends within two steps" in capsys.readouterr().out


def test_all_jobs_are_cancelled(run, slurm, capsys):
    run.submitted("7").submitted("8", dependency="7")
    slurm.answers("7|RUNNING|None|n1", "8|PENDING|Dependency|")
    cancel(run.path)
    assert slurm.calls()[1:] == ["scancel 7 8"]
    assert (run.path / "STOP").exists()
    assert "Slurm job 7, 8 is cancelled" in capsys.readouterr().out


@pytest.mark.parametrize("command", [cancel, lambda path: stop(path, wait=True)])
def test_nothing_to_stop(run, slurm, capsys, command):
    run.segment(reason="done", samples_to=1000).checkpoint(1000)
    command(run.path)
    told = f"nothing of {run.path} is running or queued; done: `flipscale export {run.path} OUT`\n"
    assert capsys.readouterr().out == told
    assert not (run.path / "STOP").exists()
    assert slurm.calls() == []


def test_job_that_has_yet_to_leave_a_finished_run_can_be_cancelled(run, slurm, capsys):
    run.segment(reason="done", samples_to=1000).checkpoint(1000).submitted("7")
    slurm.answers("7|RUNNING|None|n1|N/A")
    assert "job 7 (RUNNING) has yet to leave its nodes" in read_status(run.path, SlurmView()).next
    cancel(run.path)
    assert slurm.calls()[-1] == "scancel 7"
    assert "Slurm job 7 is cancelled" in capsys.readouterr().out
    assert not (run.path / "STOP").exists()


def test_slurm_that_does_not_answer(run, slurm):
    run.submitted("7")
    slurm.breaks()
    with pytest.raises(RunError, match="Slurm did not cancel 7: scancel: error: no controller; repeat"):
        cancel(run.path)
    assert (run.path / "STOP").exists()


@contextmanager
def listener(run: RunInFiles) -> Generator[subprocess.Popen[str]]:
    """A process that an observer takes for rank 0 of the run's open segment."""
    run.open_segment(started=utc(ago(0)), attempt="here.1")
    command = [sys.executable, "-c", LISTENER, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()


def change_beat(run: RunInFiles, **fields: Any) -> None:
    path = run.path / "heartbeats/here.1/rank_00000.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_processes_of_this_machine_are_signalled(run, capsys):
    with listener(run) as process:
        run.beat(1, "training", at=time.time(), attempt="here.1", node="elsewhere")
        cancel(run.path)
        assert process.wait(timeout=30) == 75
    printed = capsys.readouterr().out
    assert f"process {process.pid} received SIGTERM" in printed
    assert "what runs on elsewhere cannot be signalled from here" in printed
    assert [process.gone for process in read_status(run.path, SlurmView()).processes] == [True, False]


def test_an_innocent_process_with_the_number_of_an_old_heartbeat_is_not_signalled(run, capsys):
    """It had begun before the heartbeat, as in another container of this machine."""
    with subprocess.Popen(["sleep", "600"]) as innocent:
        mark = mark_of(innocent.pid)
        assert mark is not None
        run.open_segment(started=utc(ago(0)), attempt="here.1")
        run.beat(1, "training", at=time.time(), attempt="here.1", node="elsewhere")

        for fields in ({}, asdict(mark)):  # of an older version; with a mark that somebody forged
            fields = {"node": here(), "pid": innocent.pid, **fields}
            run.beat(0, "training", at=time.time() + 1, attempt="here.1", **fields)
            cancel(run.path)
            assert innocent.poll() is None
            assert f"process {innocent.pid} was sent no signal" in capsys.readouterr().out
        innocent.kill()


@pytest.mark.slow
@pytest.mark.parametrize("field", ["pid", "boot", "ticks", "command", "directory"])
def test_a_process_is_signalled_only_if_everything_agrees(run, field):
    with listener(run) as process, subprocess.Popen(["sleep", "600"]) as other:
        run.beat(1, "training", at=time.time(), attempt="here.1", node="elsewhere")
        others = {"pid": other.pid, "boot": "another", "ticks": 1, "command": "0123456789abcdef"}
        if field == "directory":  # a copy of the run: its heartbeats describe the process of the original
            (run.path / "heartbeats/here.1").rename(run.path / "moved")
            shutil.copytree(run.path / "moved", run.path / "heartbeats/here.1")
        else:
            change_beat(run, **{field: others[field]})
        cancel(run.path)
        assert process.poll() is None
        assert other.poll() is None
        other.kill()


def test_a_process_that_has_ended_is_not_signalled():
    with subprocess.Popen(["sleep", "600"]) as process:
        mark = mark_of(process.pid)
        assert mark is not None
        assert mark.lives
        process.kill()
        assert not mark.send(signal.SIGTERM, Path("/"))
    assert not mark.lives
    assert not replace(mark, pid=2**40).send(signal.SIGTERM, Path("/"))


@pytest.mark.parametrize("words", [["sleep", "600"], [sys.executable, "-m", "http.server", "0"]])
def test_a_controllers_number_that_another_process_got_is_not_signalled(run, words):
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as innocent:
        run.submitted(str(innocent.pid), cluster="local")
        assert not end_controller(str(innocent.pid), run.path / "logs")
        cancel(run.path)
        assert innocent.poll() is None
        innocent.kill()


def test_path_that_is_not_a_run_is_refused(tmp_path):
    for command in (cancel, lambda path: stop(path, wait=False)):
        with pytest.raises(UserError, match="is not a run directory"):
            command(tmp_path)
