"""`flipscale status` on real runs and on files in any state, and what it costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.run_in_files import RunInFiles
from support.status_times import ago, status_of, two_hours, utc
from support.tiny_run import TinyRun

from flipscale.cli.status import status as status_command
from flipscale.errors import UserError
from flipscale.orchestration.status.liveness import SlurmView
from flipscale.orchestration.status.run_status import RunStatus, read_status, read_statuses
from flipscale.runs.snapshot import runs_below


def flipscale(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flipscale", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
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
    for words in (f"`flipscale export {tiny.output} OUT`", "100.00%", "640 of 640", "GPU-hours"):
        assert words in page.stdout
    assert page.stderr == ""


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


def test_of_a_gigabyte_of_metrics_the_end_is_read(run):
    with open(run.path / "metrics.jsonl", "wb") as file:
        file.truncate(2**30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    run.metrics(samples=480, time=ago(0), images_per_second=5.0)

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    status = status_of(run)
    assert bytes_read() - before < 2**20
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


def test_a_run_whose_checkpoints_are_lost_is_still_one(run):
    run.segment(samples_to=96, reason="stopped")
    shutil.rmtree(run.path / "checkpoints")
    document = json.loads(flipscale("status", run.path, "--json").stdout)
    assert (document["state"], document["samples"]) == ("stopped", 0)


def test_where_no_run_is(tmp_path):
    (tmp_path / "job.yaml").write_text("a job file does not make a run")
    with pytest.raises(UserError, match=f"there is no run at or below {tmp_path}; name the output of"):
        status_command(tmp_path, watch=False, as_json=False)


def test_watching_ends_with_ctrl_c_and_when_nothing_will_change(run, slurm):
    run.submitted("7")
    slurm.answers("7|PENDING|Priority|")
    watch = [sys.executable, "-m", "flipscale", "status", str(run.path), "--watch"]
    # Python leaves Ctrl-C ignored if it was ignored at the start, as in a shell's background jobs.
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
