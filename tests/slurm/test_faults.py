"""Processes that hang, fail or get signals at bad moments; cancelled jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cluster_handle import Cluster
from support.slurm_run import FLIPSCALE, SlurmRun, trained_without_gaps, two_nodes
from support.tiny_run import TinyRun

from flipscale.distributed.placement import rendezvous_port
from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory

MakeRun = Callable[..., TinyRun]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# A defect in the code, in one process at one step. Every Python of the job imports it from PYTHONPATH.
DEFECT = """
import os, sys
if os.environ.get("SLURM_PROCID") == "1" and "train" in sys.argv:
    from flipscale.training.update import Updater
    update = Updater.update
    def defective(self, stage, batch):
        if batch.step.start >= 320:
            raise KeyError("a defect in the code")
        return update(self, stage, batch)
    Updater.update = defective
"""

# A save that does not end, in every process.
STALL = """
import os, sys, time
if "SLURM_PROCID" in os.environ and "train" in sys.argv:
    from flipscale.runs import checkpoint_writer
    write = checkpoint_writer.CheckpointWriter._write
    def stalling(self, path, copy):
        while os.path.exists({stall!r}):
            time.sleep(0.1)
        write(self, path, copy)
    checkpoint_writer.CheckpointWriter._write = stalling
"""


def test_a_process_that_hangs_is_noticed_and_the_job_restarts(
    tiny_run: MakeRun, patient_cluster: Cluster
) -> None:
    hang = {"factor": 3, "least": "12s", "start": "2min"}
    run = SlurmRun.of(patient_cluster, tiny_run("hangs", **two_nodes(4_000, hang=hang)))
    job = run.submit()
    run.more_samples(320)

    run.kill(1, signal.SIGSTOP)
    run.starts_again(job, 1)
    run.wait_for_end(job)

    ledger = run.ledger()
    assert [line.reason for line in ledger] == ["hang", "done"], run.log()
    assert "no sign of rank 1" in ledger[0].detail
    assert len(ledger[0].suspects) == 1
    assert "Thread 0x" in run.log()  # the Python stacks of the process that waited
    assert "_agree" in run.log() or "_step" in run.log()
    assert trained_without_gaps(ledger, 4_000)
    assert audit(RunDirectory(run.run.output)).proven


def test_a_defect_in_one_process_ends_all_and_is_not_retried(
    tiny_run: MakeRun, patient_cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(DEFECT)
    environment = {"OMP_NUM_THREADS": 1, "PYTHONPATH": str(tmp_path / "path")}
    run = SlurmRun.of(patient_cluster, tiny_run("defect", **two_nodes()), environment=environment)
    job = run.submit()

    run.wait_for_samples(240)
    run.wait_for_end(job, "FAILED", timeout=30)  # all processes are gone within this time

    (line,) = run.ledger()
    assert line.reason == "code", run.log()
    assert "KeyError: 'a defect in the code'" in line.detail
    states = run.cluster.run("sinfo", "--noheader", "--format=%T").stdout.split()
    assert set(states) <= {"idle", "completing"}
    assert patient_cluster.job(job)["Restarts"] == "0"


@pytest.mark.long
def test_processes_that_do_not_meet_try_again_on_another_port(
    tiny_run: MakeRun, patient_cluster: Cluster
) -> None:
    before = patient_cluster.sbatch("#!/bin/sh\n", "--output=/dev/null")
    run = SlurmRun.of(patient_cluster, tiny_run("taken", **two_nodes(2_000)))
    expected = int(before) + 2  # the trial submission, by which Slurm judges the script, takes a number, too
    with socket.create_server(("", rendezvous_port(str(expected), 0))):
        job = run.submit()
        assert int(job) == expected
        run.starts_again(job, 1)

    run.wait_for_end(job)
    assert "the processes did not find each other" in run.log()
    ends = [(line.restarts, line.reason) for line in run.ledger()]
    assert ends == [(0, "failed_start"), (1, "done")], run.log()
    assert trained_without_gaps(run.ledger(), 2_000)


@pytest.mark.long
def test_a_cancelled_job_stays_cancelled(tiny_run: MakeRun, patient_cluster: Cluster) -> None:
    run = SlurmRun.of(patient_cluster, tiny_run("cancelled", **two_nodes()))
    job = run.submit()
    run.more_samples(160)
    patient_cluster.run("scancel", job)
    run.wait_for_end(job, "CANCELLED")

    (line,) = run.ledger()
    assert (line.reason, line.lost_samples) == ("cancelled", 0)

    # A person may resume it.
    again = run.submit("cluster.nodes=1")
    run.more_samples(160)
    (run.run.output / "STOP").touch()
    run.wait_for_end(again)
    assert not (run.run.output / "STOP").exists()
    assert [line.reason for line in run.ledger()] == ["cancelled", "stopped"]


@pytest.mark.long
def test_signals_before_the_first_step_and_twice_and_in_a_save(
    tiny_run: MakeRun, patient_cluster: Cluster
) -> None:
    run = SlurmRun.of(patient_cluster, tiny_run("early", **two_nodes(4_000)))
    job = run.submit()
    patient_cluster.wait_for(job, "RUNNING")
    # Slurm drops a signal that comes before the processes exist, so wait for them; Python still imports then.
    for rank in (0, 1):
        patient_cluster.wait_until(lambda rank=rank: run.process_of(rank, "0"), bool)
    patient_cluster.run("scancel", "--signal=TERM", job)

    run.starts_again(job, 1)
    run.more_samples(160)
    for name in ("TERM", "USR2", "TERM"):
        patient_cluster.run("scancel", f"--signal={name}", job, check=False)
    run.starts_again(job, 2)
    run.wait_for_end(job)

    # The first start opens no segment if its processes need long to meet after the signal.
    ledger = run.ledger()
    *first, second, third = ledger
    assert [(line.reason, line.samples_to) for line in first] in ([], [("preempted", 0)]), run.log()
    assert [second.reason, third.reason] == ["preempted", "done"], run.log()
    assert trained_without_gaps(ledger, 4_000)


@pytest.mark.long
def test_an_older_start_that_still_holds_the_run_loses_it(
    tiny_run: MakeRun, patient_cluster: Cluster
) -> None:
    """A process left behind on a lost node can neither join the next start nor write."""
    run = SlurmRun.of(patient_cluster, tiny_run("orphan", **two_nodes(8_000)))
    job = run.submit()
    run.more_samples(320)

    orphan = run.beats()[0].pid
    run.kill(0, signal.SIGSTOP)
    patient_cluster.run("scontrol", "requeue", job)
    run.starts_again(job, 1)
    run.wait_for_end(job)

    assert [line.reason for line in run.ledger()][-1] == "done", run.log()
    assert not Path(f"/proc/{orphan}/cmdline").exists() or not Path(f"/proc/{orphan}/cmdline").read_bytes()


@pytest.mark.long
def test_fifty_looks_at_a_job_ask_slurm_once_each_and_do_it_no_harm(
    tiny_run: MakeRun, patient_cluster: Cluster, tmp_path: Path
) -> None:
    run = SlurmRun.of(patient_cluster, tiny_run("watched", **two_nodes(24_000)))
    job = run.submit()
    run.more_samples(320)
    calls = tmp_path / "calls"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("squeue", "sacct", "scontrol", "sinfo"):  # the real ones, counted
        real = shutil.which(name)
        (programs / name).write_text(f'#!/bin/sh\necho {name} >> "{calls}"\nexec {real} "$@"\n')
        (programs / name).chmod(0o755)

    environment = {**patient_cluster.environment, "PATH": f"{programs}:{os.environ['PATH']}"}
    watching = Cluster(patient_cluster.directory, environment)

    for _ in range(50):
        shown = json.loads(watching.run(*FLIPSCALE, "status", run.run.output, "--json").stdout)
        assert shown["name"] == "tiny"
    assert len(calls.read_text().splitlines()) <= 50
    run.wait_for_end(job)

    assert [line.reason for line in run.ledger()] == ["done"], run.log()
    assert trained_without_gaps(run.ledger(), 24_000)


@pytest.mark.long
def test_a_save_that_cannot_end_in_the_grace_time_leaves_the_checkpoint_before(
    tiny_run: MakeRun, patient_cluster: Cluster, tmp_path: Path
) -> None:
    """Storage stalls as soon as the file `stall` exists; Slurm kills the job and starts it again."""
    path = tmp_path / "path"
    stall = tmp_path / "stall"
    path.mkdir()
    (path / "sitecustomize.py").write_text(STALL.format(stall=str(stall)))
    environment = {"OMP_NUM_THREADS": 1, "PYTHONPATH": str(path)}
    run = SlurmRun.of(patient_cluster, tiny_run("stalls", **two_nodes(8_000)), environment=environment)
    job = run.submit()
    run.wait_for_samples(1_000)  # beyond the first checkpoint, after 50 steps

    stall.touch()
    patient_cluster.preempt(seconds=1)
    run.starts_again(job, 1)
    stall.unlink()
    run.wait_for_end(job)

    ledger = run.ledger()
    assert [line.reason for line in ledger] == ["preempted", "done"], run.log()
    assert ledger[0].samples_to >= 800
    assert ledger[0].samples_to % 800 == 0
    assert ledger[0].lost_samples > 0
    assert trained_without_gaps(ledger, 8_000)
    assert audit(RunDirectory(run.run.output)).proven
