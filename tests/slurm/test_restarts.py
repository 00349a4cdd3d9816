"""Starts again on other nodes, after a refused requeue, in a chain, and through torchrun."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cluster_handle import Cluster
from support.slurm_run import SlurmRun, trained_without_gaps, two_nodes
from support.tiny_run import TinyRun

MakeRun = Callable[..., TinyRun]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.long
def test_the_number_of_nodes_may_change_at_every_start(tiny_run: MakeRun, patient_cluster: Cluster) -> None:
    straight = tiny_run("straight", **two_nodes(6_000))
    moved = tiny_run("moved", **two_nodes(6_000))
    run = SlurmRun.of(patient_cluster, moved)
    job = run.submit()
    for restarts, nodes in ((1, 1), (2, 2)):
        run.more_samples(320)
        patient_cluster.preempt(seconds=1)
        patient_cluster.wait_for(job, lambda record: record["Reason"] == "BeginTime", 60)
        patient_cluster.run(
            "scontrol", "update", f"JobId={job}", f"NumTasks={nodes}", f"NumNodes={nodes}-{nodes}"
        )
        run.starts_again(job, restarts)
    run.wait_for_end(job)
    assert [line.world_size for line in run.ledger()] == [2, 1, 2], run.log()
    assert straight.train().returncode == 0
    digest = straight.last_manifest()["progress"]["digest"]
    assert moved.last_manifest()["progress"]["digest"] == digest


@pytest.mark.long
def test_a_refused_requeue_falls_back_to_a_job_that_follows(
    tiny_run: MakeRun, patient_cluster: Cluster
) -> None:
    run = SlurmRun.of(patient_cluster, tiny_run("refused", **two_nodes(4_000)))
    job = run.submit()
    run.more_samples(320)

    patient_cluster.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    patient_cluster.run("scancel", "--signal=TERM", job)
    run.wait_for_segments(1)
    successor = patient_cluster.wait_until(run.newest_job, lambda newest: newest != job)
    run.wait_for_end(successor)
    assert [line.job_id for line in run.ledger()] == [job, successor]
    assert trained_without_gaps(run.ledger(), 4_000)


@pytest.mark.long
def test_nodes_without_scontrol_are_left_by_a_job_that_follows(
    tiny_run: MakeRun, patient_cluster: Cluster, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "sh", "env", "grep", "sleep", "hostname", "srun", "sbatch", "squeue", "scancel"):
        (programs / name).symlink_to(shutil.which(name) or "")
    environment = {"OMP_NUM_THREADS": 1, "PATH": str(programs)}
    run = SlurmRun.of(patient_cluster, tiny_run("bare", **two_nodes(4_000)), environment=environment)
    job = run.submit()
    run.more_samples(320)

    patient_cluster.run("scancel", "--signal=TERM", job)
    run.wait_for_segments(1)
    successor = patient_cluster.wait_until(run.newest_job, lambda newest: newest != job)
    run.wait_for_end(successor)
    assert [line.job_id for line in run.ledger()] == [job, successor], run.log()
    assert "has no scontrol" in run.log()
    assert trained_without_gaps(run.ledger(), 4_000)


@pytest.mark.long
def test_a_chain_resumes_after_a_kill_without_warning_and_ends_with_the_budget(
    tiny_run: MakeRun, patient_cluster: Cluster
) -> None:
    run = SlurmRun.of(patient_cluster, tiny_run("chain", **two_nodes(4_000)), restart="chain")
    job = run.submit()
    run.more_samples(320)

    follower = patient_cluster.wait_until(run.newest_job, lambda newest: newest != job)
    for rank in (0, 1):
        run.kill(rank, signal.SIGKILL)
    run.wait_for_end(follower)
    assert [line.job_id for line in run.ledger()] == [job, follower], run.log()
    assert trained_without_gaps(run.ledger(), 4_000)

    # The job that would have followed is cancelled.
    patient_cluster.wait_until(patient_cluster.squeue, lambda jobs: not jobs)


@pytest.mark.long
def test_one_torchrun_per_node(tiny_run: MakeRun, patient_cluster: Cluster) -> None:
    run = SlurmRun.of(patient_cluster, tiny_run("torchrun", **two_nodes(4_000)), launcher="torchrun")
    job = run.submit()
    run.more_samples(320)
    patient_cluster.preempt(seconds=1)
    run.starts_again(job, 1)
    run.wait_for_end(job)

    assert [line.reason for line in run.ledger()] == ["preempted", "done"], run.log()
    assert trained_without_gaps(run.ledger(), 4_000)
