"""`flipscale status`: what it says of real runs and of files in any state, at what price."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from support.run_in_files import RunInFiles
from support.tiny_run import TinyRun

from flipscale.cli.status import status as status_command
from flipscale.errors import UserError
from flipscale.orchestration.status.liveness import SlurmView
from flipscale.orchestration.status.run_status import RunStatus, read_status, read_statuses
from flipscale.runs.snapshot import runs_below


def ago(seconds: float) -> float:
    return time.time() - seconds


def utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def status_of(run: RunInFiles) -> RunStatus:
    return read_status(run.path, SlurmView())


def flipscale(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flipscale", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_run_that_is_looked_at_fifty_times_while_it_trains(tiny_run, slurm):
    tiny = tiny_run(logging={"every": "1 steps"})
    process = tiny.start()
    seen: list[RunStatus] = []
    while process.poll() is None or len(seen) < 50:
        if (tiny.output / "job.yaml").exists() and (tiny.output / "checkpoints").is_dir():
            seen.append(read_status(tiny.output, SlurmView()))
    assert process.returncode == 0, process.communicate()[1]
    process.communicate()
    samples = [status.samples for status in seen]
    assert samples == sorted(samples)
    assert {"training", "done"} <= {status.state for status in seen}
    assert slurm.calls() == []
    assert [record["samples"] for record in tiny.metrics()] == [*range(16, 785, 16), 792]
    check_the_end(tiny)


def check_the_end(tiny: TinyRun) -> None:
    """Page and document of a finished run, and that looking leaves no trace."""
    before = {path: path.stat().st_mtime_ns for path in tiny.output.rglob("*")}
    page = flipscale("status", tiny.output)
    document = json.loads(flipscale("status", tiny.output, "--json").stdout)
    assert {path: path.stat().st_mtime_ns for path in tiny.output.rglob("*")} == before
    assert document["schema"] == 1
    assert document["state"] == "done"
    assert document["samples"] == document["samples_total"] == document["checkpoint"]["samples"] == 792
    assert [phase["samples_done"] for phase in document["phases"]] == [640, 152]
    assert document["training"]["loss"] == tiny.metrics()[-1]["loss"]
    ledger = [json.loads(line) for line in (tiny.output / "ledger.jsonl").read_text().splitlines()]
    assert [segment["seconds"] for segment in document["segments"]] == [line["seconds"] for line in ledger]
    assert document["lost"]["startup_seconds"] == ledger[0]["startup_seconds"] > 0
    assert [process["state"] for process in document["processes"]] == ["done"]
    for told in (f"`flipscale export {tiny.output} OUT`", "100.00%", "640 of 640", "GPU-hours"):
        assert told in page.stdout
    assert page.stderr == ""


def two_hours(run: RunInFiles) -> RunInFiles:
    """100 s in the queue, 1000 s that give 400 samples, 300 s in the queue, 600 s that give 200 more."""
    run.submitted("7", time=ago(5000))
    run.segment(
        reason="preempted", started=utc(ago(4900)), ended=utc(ago(3900)), samples_from=0, samples_to=400,
        seconds=1000, gpu_seconds=2000, startup_seconds=50, lost_samples=16, lost_seconds=40, job_id="7",
    )  # fmt: skip
    run.segment(
        reason="code", detail="ValueError: a tar of tars", started=utc(ago(3600)), ended=utc(ago(3000)),
        samples_from=400, samples_to=600, seconds=600, gpu_seconds=1200, startup_seconds=30, job_id="7",
    )  # fmt: skip
    return run.checkpoint(400).checkpoint(600)


def test_where_the_time_went(run, slurm):
    status = status_of(two_hours(run))
    assert [segment.queue_seconds for segment in status.segments] == pytest.approx([100, 300], abs=2)
    assert status.lost.startup_seconds == 80
    assert status.lost.replay_seconds == 40
    assert status.lost.queue_seconds == pytest.approx(400, abs=4)
    assert status.lost.total_seconds == pytest.approx(520, abs=4)
    assert status.lost.gpu_hours == pytest.approx(2 * 120 / 3600, abs=1e-4)
    assert status.gpu_hours == pytest.approx(3200 / 3600, abs=1e-4)
    assert status.speed.eta_from == "history"
    assert status.speed.eta_seconds == pytest.approx(400 / (600 / 2000), rel=0.01)


def test_the_time_until_a_person_mends_a_run_is_no_queue(run, slurm):
    two_hours(run).submitted("8", time=ago(1000))
    slurm.answers("8|PENDING|Priority|")
    status = status_of(run)
    assert status.next == "waiting in the queue (Priority)"
    assert status.lost.queue_seconds == pytest.approx(1400, abs=5)  # 400 before, 1000 since


def test_without_history_the_speed_alone_gives_the_time_left(run):
    for number in range(1, 5):
        run.metrics(samples=8 * number, time=ago(0), images_per_second=[10.0, 40.0][number % 2])
    run.open_segment(started=utc(ago(60)))
    status = status_of(run)
    assert status.speed.eta_from == "speed"
    assert status.speed.images_per_second == pytest.approx(16.0)  # 16 samples in 1/10 + 1/40 of 8 s
    assert status.speed.eta_seconds == pytest.approx((1000 - 32) / 16.0, rel=1e-3)


def odd(prepare: Callable[[RunInFiles], object], *answer: str, state: str, told: str) -> Any:
    return pytest.param(prepare, answer, state, told, id=f"{state}: {told}")


@pytest.mark.parametrize(
    ("prepare", "answer", "state", "told"),
    [
        odd(lambda run: run, state="new", told="nothing has begun"),
        odd(lambda run: run.submitted("7"), "7|PENDING|Resources|", state="queued", told="(Resources)"),
        odd(lambda run: run.submitted("7_2"), "7_[0,2-5%1]|PENDING|JobArrayTaskLimit|", state="queued",
            told="waiting in the queue (JobArrayTaskLimit)"),
        odd(lambda run: run.submitted("7"), "7|PENDING|JobHeldUser|", state="queued",
            told="`scontrol release 7`"),
        odd(lambda run: run.submitted("7"), "7|PENDING|DependencyNeverSatisfied|", state="queued",
            told="can never start"),
        odd(lambda run: run.submitted("7"), "7|PENDING|BeginTime|", state="queued", told="requeued"),
        odd(lambda run: run.submitted("7"), "7|RUNNING|None|n[1-2]", state="starting", told="it is starting"),
        odd(lambda run: run.submitted("7"), "7|FAILED|None|n[1-2]", state="interrupted",
            told="its job ended (FAILED) before training began; read "),
        odd(lambda run: run.submitted("7"), state="interrupted", told="its job ended (GONE)"),
        odd(two_hours, state="failed",
            told="it ended with an error: ValueError: a tar of tars; mend it and `flipscale submit JOB`"),
        odd(lambda run: run.segment(reason="preempted", samples_to=400).submitted("7"), state="interrupted",
            told="its last segment ended (preempted) and no job of it is in the queue; `flipscale submit"),
        odd(lambda run: run.segment(reason="stopped", samples_to=400), state="stopped",
            told="it was stopped; `flipscale train JOB` goes on"),
        odd(lambda run: (run.segment(reason="stopped"), (run.path / "STOP").touch()), state="stopped",
            told="STOP` and `flipscale train JOB` goes on"),
        odd(lambda run: run.segment(reason="done", samples_to=1000).checkpoint(1000), state="done",
            told="`flipscale export "),
        odd(lambda run: run.segment(reason="done", samples_to=600).checkpoint(600), state="interrupted",
            told="more phases were added"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(0), samples_seen=80).beat(1, "saving", at=ago(0)),
            "7|RUNNING|None|n[1-2]", state="saving", told="nothing to do"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(0)).beat(1, "training", at=ago(240)),
            "7|RUNNING|None|n[1-2]", state="training", told="rank 1 (n2) gave no sign of life for 4min"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(900)).beat(1, "training", at=ago(900)),
            "7|RUNNING|None|n[1-2]", state="silent", told="ranks 0 (n1), 1 (n2) gave no sign of life for 15"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "failed", at=ago(0), kind="lost_process", message="another process is gone")
            .beat(1, "failed", at=ago(0), kind="code", message="ValueError: that one"),
            "7|RUNNING|None|n[1-2]", state="failing", told="(ValueError: that one)"),
        odd(lambda run: (run.open_segment(started=utc(ago(0)), attempt="7.0").beat(0, "saving", at=ago(0)),
                         (run.path / "STOP").touch()), state="stopping", told="it saves and ends"),
        odd(lambda run: run.open_segment(started=utc(ago(999)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(500)),
            "7|NODE_FAIL|None|n1", state="lost", told="gone without a word"),
    ],
)  # fmt: skip
def test_every_state_and_what_comes_next(run, slurm, prepare, answer, state, told):
    prepare(run)
    slurm.answers(*answer)
    status = status_of(run)
    assert status.state == state
    assert told in status.next
    assert len(slurm.calls()) <= 1


def test_a_slow_step_is_no_silence(run):
    run.open_segment(started=utc(ago(600)), attempt="7.0")
    run.beat(0, "training", at=ago(240), step_seconds=60.0)
    assert [process.silent for process in status_of(run).processes] == [False]


def test_a_requeued_run_waits_after_its_killed_segment(run, slurm):
    two_hours(run).submitted("8", time=ago(2000))
    run.open_segment(started=utc(ago(1800)), attempt="8.0", samples_from=600)
    run.beat(0, "training", at=ago(300), attempt="8.0", samples_seen=900)
    os.utime(run.path / "segment.json", (ago(1800), ago(1800)))
    slurm.answers("8|PENDING|BeginTime|")
    status = status_of(run)
    assert status.state == "queued"
    assert (status.samples, status.segments[-1].samples_to) == (600, 600)
    assert status.segments[-1].seconds == pytest.approx(1500, abs=5)
    assert status.lost.queue_seconds == pytest.approx(400 + 200 + 300, abs=5)


def test_slurm_is_asked_once_for_all_runs(tmp_path, slurm):
    runs = [RunInFiles.new(tmp_path / f"runs/{name}") for name in "abc"]
    for number, run in enumerate(runs):
        run.submitted(f"{number}").submitted(f"1{number}")
    slurm.answers("10|RUNNING|None|n1", "11|PENDING|Priority|", "12|FAILED|None|n1")
    statuses, problems = read_statuses(runs_below(tmp_path), SlurmView())
    assert [status.state for status in statuses] == ["starting", "queued", "interrupted"]
    assert problems == []
    assert len(slurm.calls()) == 1
    assert slurm.calls()[0].startswith("squeue ")


def test_accounting_is_asked_about_what_the_queue_has_forgotten(run, slurm):
    run.submitted("7", accounting=True)
    slurm.answers("7|RUNNING|None|n1")
    assert status_of(run).slurm == "squeue"
    slurm.answers()
    slurm.answers("7|CANCELLED by 0|None|None assigned", program="sacct")
    status = status_of(run)
    assert [job.state for job in status.jobs] == ["CANCELLED"]
    assert status.slurm == "sacct"
    assert [call.split()[0] for call in slurm.calls()] == ["squeue", "squeue", "sacct"]


def test_an_element_that_accounting_still_lists_as_waiting_is_gone(run, slurm):
    run.submitted("7_2", accounting=True)
    slurm.answers("7_1|PENDING|Resources|")
    slurm.answers("7_[0-3%2]|PENDING|None|None assigned", program="sacct")
    status = status_of(run)
    assert [(job.state, job.live) for job in status.jobs] == [("GONE", False)]


def test_a_watcher_asks_slurm_only_now_and_then(run, slurm):
    run.submitted("7")
    slurm.answers("7|PENDING|Priority|")
    view = SlurmView(seconds=3600)
    assert [read_status(run.path, view).state for _ in range(5)] == ["queued"] * 5
    assert len(slurm.calls()) == 1


def test_slurm_that_does_not_answer_is_said_and_hides_nothing_else(run, slurm):
    slurm.breaks()
    status = status_of(two_hours(run))
    assert status.slurm == "Slurm did not answer: squeue: error: no controller"
    assert status.jobs[0].state == "UNKNOWN"
    assert status.state == "failed"
    run.segment(reason="preempted", samples_to=600)
    assert "Slurm could not be asked" in status_of(run).next


def test_files_that_are_cut_anywhere_or_damaged(run, slurm):
    two_hours(run).open_segment(started=utc(ago(0)), attempt="7.0").beat(0, "training", at=ago(0))
    run.metrics(samples=8, time=ago(0), images_per_second=5.0).metrics(samples=16, time=ago(0))
    names = (
        "ledger.jsonl",
        "metrics.jsonl",
        "segment.json",
        "submissions.jsonl",
        "heartbeats/7.0/rank_00000.json",
    )
    for name in names:
        whole = (run.path / name).read_bytes()
        for size in range(0, len(whole), 23):
            (run.path / name).write_bytes(whole[:size])
            assert status_of(run).samples >= 600
        (run.path / name).write_bytes(
            b'[1]\n{"samples": null, "started": 3, "time": "x"}\n\xff\xfe\n' + whole
        )
        status_of(run)
        (run.path / name).unlink()
        status_of(run)
        (run.path / name).write_bytes(whole)
    (run.path / "metrics.jsonl").write_text('{"samples": 8, "loss": NaN, "time": Infinity}\n')
    training = status_of(run).training
    assert training is not None
    assert training.loss is None


def test_a_gigabyte_of_metrics_takes_no_time(run):
    with open(run.path / "metrics.jsonl", "wb") as file:
        file.truncate(2**30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    run.metrics(samples=480, time=ago(0), images_per_second=5.0)
    began = time.process_time()
    status = status_of(run)
    assert time.process_time() - began < 0.3
    assert status.training is not None
    assert status.training.loss == 2.5


def test_a_long_quarantine_list_is_estimated(run):
    line = json.dumps({"shard": 1, "ordinal": 2, "path": "x.tar", "key": "a", "reason": "cut"}) + "\n"
    (run.path / "quarantine.jsonl").write_text(line * 300)
    assert (status_of(run).quarantined, status_of(run).quarantined_is_estimate) == (300, False)
    (run.path / "quarantine.jsonl").write_text(line * 200_000)
    assert status_of(run).quarantined == pytest.approx(200_000, rel=0.01)
    assert status_of(run).quarantined_is_estimate


def test_all_runs_below_a_directory(tmp_path, slurm):
    first = two_hours(RunInFiles.new(tmp_path / "runs/first"))
    RunInFiles.new(tmp_path / "runs/deep/er/second")
    broken = RunInFiles.new(tmp_path / "runs/third")
    (broken.path / "job.yaml").write_text("sed: 1\n")
    document = json.loads(flipscale("status", tmp_path, "--json").stdout)
    assert [run["name"] for run in document["runs"]] == ["first", "first"]
    assert [run["state"] for run in document["runs"]] == ["new", "failed"]
    assert len(document["problems"]) == 1
    assert "unknown key sed" in document["problems"][0]
    page = flipscale("status", tmp_path).stdout
    assert "runs/deep/er/second" in page
    assert "60.0%" in page
    assert "unknown key sed" in page
    assert runs_below(first.path) == [first.path]


def test_where_no_run_is(tmp_path):
    (tmp_path / "job.yaml").write_text("a job file alone is no run")
    with pytest.raises(UserError, match=f"there is no run at or below {tmp_path}; name the output of"):
        status_command(tmp_path, watch=False, as_json=False)


def test_watching_ends_with_ctrl_c_and_when_nothing_will_change(run, slurm):
    run.submitted("7")
    slurm.answers("7|PENDING|Priority|")
    watch = [sys.executable, "-m", "flipscale", "status", str(run.path), "--watch"]
    # Python leaves Ctrl-C ignored where it was when it started, as in a shell's background jobs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    while "Priority" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    slurm.answers("7|CANCELLED|None|")
    done = subprocess.run(watch, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "its job ended (CANCELLED)" in done.stdout
    with pytest.raises(UserError, match="leave it out to get one JSON document"):
        status_command(run.path, watch=True, as_json=True)


def test_a_run_whose_job_file_is_damaged(run):
    (run.path / "job.yaml").write_text("sed: 1\n")
    with pytest.raises(UserError, match="unknown key sed"):
        status_of(run)
