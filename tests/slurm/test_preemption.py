"""A run ends by itself with the exact budget and the same weights, whatever the cluster does to it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from support.cluster_handle import Cluster
from support.slurm_run import SlurmRun, trained_without_gaps
from support.tiny_run import TinyRun

from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory

MakeRun = Callable[..., TinyRun]
pytestmark = pytest.mark.slow


def phases(masked: int, unmasked: int = 160) -> list[dict[str, object]]:
    return [
        dict(name="masked", samples=masked, mask_ratio=0.5, batch_size=16, base_lr=0.01, warmup=640),
        dict(name="unmasked", samples=unmasked, mask_ratio=0.0, batch_size=16, base_lr=0.001),
    ]


@pytest.mark.timeout(1200)
def test_preemptions_a_time_limit_a_killed_process_and_a_lost_node_leave_no_trace(
    tiny_run: MakeRun, patient_cluster: Cluster
) -> None:
    """Three preemptions, one time limit, one SIGKILL and one node lost, in a run of two nodes."""
    cluster = patient_cluster
    changes = dict(
        phases=phases(26_000),
        checkpoint={"every": ["50 steps"], "keep_last": 2},
        cluster={"nodes": 2, "gpus_per_node": 1, "timeout": "60min"},
        data={"workers": 1},
    )
    straight = tiny_run("straight", **changes)
    disturbed = tiny_run("disturbed", **changes)

    run = SlurmRun.of(cluster, disturbed)
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
    assert trained_without_gaps(ledger, 26_160)
    assert all(line.lost_samples == 0 for line in ledger if line.reason in ("preempted", "timeout"))
    assert all(line.lost_samples <= 50 * 16 for line in ledger)
    assert ledger[5].suspects == (second,)
    assert audit(RunDirectory(disturbed.output)).proven

    assert straight.train(processes=2).returncode == 0
    assert disturbed.last_manifest()["progress"] == straight.last_manifest()["progress"]
    assert disturbed.weights() == straight.weights()
    assert disturbed.metrics() == straight.metrics()
