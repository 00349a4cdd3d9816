"""`flipscale stop` and `flipscale cancel`, on real processes and on what is only queued."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from support.time_limits import wait_until

from flipscale.cli.cancel import cancel
from flipscale.cli.stop import stop
from flipscale.errors import RunError, UserError
from flipscale.orchestration.status.liveness import SlurmView, here
from flipscale.orchestration.status.run_status import read_status

LONG_PHASE = {"name": "masked", "samples": 800_000, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}
# Says when it listens, and ends with 75 on SIGTERM, as training does.
LISTENER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
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
    assert "saves and ends after its current step" in printed
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
    assert "saves and ends after its current step" in capsys.readouterr().out


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


def test_slurm_that_does_not_answer(run, slurm):
    run.submitted("7")
    slurm.breaks()
    with pytest.raises(RunError, match="Slurm did not cancel 7: scancel: error: no controller; repeat"):
        cancel(run.path)
    assert (run.path / "STOP").exists()


def test_processes_of_this_machine_are_signalled(run, capsys):
    process = subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    run.open_segment(started="2026-01-01T00:00:00+00:00", attempt="here.1")
    run.beat(0, "training", at=time.time(), attempt="here.1", node=here(), pid=process.pid)
    run.beat(1, "training", at=time.time(), attempt="here.1", node="elsewhere")
    cancel(run.path)
    assert process.wait(timeout=30) == 75
    printed = capsys.readouterr().out
    assert f"process {process.pid} received SIGTERM" in printed
    assert "what runs on elsewhere cannot be signalled from here" in printed
    beats = json.loads((run.path / "heartbeats/here.1/rank_00000.json").read_text())
    assert beats["pid"] == process.pid
    assert [process.gone for process in read_status(run.path, SlurmView()).processes] == [True, False]


def test_a_number_that_another_process_got_is_not_signalled(run, capsys):
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        run.open_segment(started="2026-01-01T00:00:00+00:00", attempt="here.1")
        run.beat(0, "training", at=time.time() - 3600, attempt="here.1", node=here(), pid=process.pid)
        run.beat(1, "training", at=time.time(), attempt="here.1", node="elsewhere")
        cancel(run.path)
        assert process.poll() is None
        process.kill()


def test_path_that_is_not_a_run_is_refused(tmp_path):
    for command in (cancel, lambda path: stop(path, wait=False)):
        with pytest.raises(UserError, match="is not a run directory"):
            command(tmp_path)
