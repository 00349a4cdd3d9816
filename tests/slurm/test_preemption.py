"""A run ends by itself with the exact budget and the same weights, whatever the cluster does to it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from support.cluster_handle import Cluster
from support.slurm_run import DISTURBED_SAMPLES, SlurmRun, trained_without_gaps, two_phases
from support.tiny_run import TinyRun

from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory

MakeRun = Callable[..., TinyRun]
pytestmark = pytest.mark.slow


@pytest.mark.timeout(1200)
def test_preemptions_a_time_limit_a_killed_process_and_a_lost_node_leave_no_trace(
    tiny_run: MakeRun, undisturbed: TinyRun, patient_cluster: Cluster
) -> None:
    """Three preemptions, one time limit, one SIGKILL and one node lost, in a run of two nodes."""
    cluster = patient_cluster
    disturbed = tiny_run("disturbed", **two_phases())

    run = SlurmRun.paced(cluster, disturbed)
    job = run.submit()
    for restarts in (1, 2, 3):
        run.more_samples(320)
        cluster.preempt(seconds=1)
        run.starts_again(job, restarts)

    run.more_samples(320)
    run.kill(1, signal.SIGKILL)
    run.starts_again(job, 4)

    run.more_samples(320)
    # Slurm does the same at the job's own time limit, in an hour.
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    run.starts_again(job, 5, minutes=60)

    run.more_samples(320)
    lost = cluster.job(job)["NodeList"]
    assert lost in ("n[1-2]", "n[2-3]", "n[1,3]")
    second = "n2" if lost == "n[1-2]" else "n3"
    cluster.node_kill(second, steps=True)
    run.starts_again(job, 6)
    run.wait_for_end(job)
    cluster.node_start(second)

    ledger = run.ledger()
    reasons = [line.reason for line in ledger]
    assert reasons == ["preempted"] * 3 + ["lost_process", "timeout", "lost_process", "done"], run.log()
    assert trained_without_gaps(ledger, DISTURBED_SAMPLES)
    assert all(line.lost_samples == 0 for line in ledger if line.reason in ("preempted", "timeout"))
    assert all(line.lost_samples <= 50 * 16 for line in ledger)
    assert ledger[5].suspects == (second,)
    assert audit(RunDirectory(disturbed.output)).proven

    assert disturbed.last_manifest()["progress"] == undisturbed.last_manifest()["progress"]
    assert disturbed.weights() == undisturbed.weights()
    assert disturbed.metrics() == undisturbed.metrics()
