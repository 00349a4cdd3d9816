"""status, stop and cancel with a real Slurm and real jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cluster_handle import Cluster
from support.run_in_files import RunInFiles

from flipscale.cli.cancel import cancel
from flipscale.cli.stop import stop
from flipscale.orchestration.status.liveness import SlurmView
from flipscale.orchestration.status.run_status import read_status, read_statuses
from flipscale.slurm import query_accounting, run_slurm

pytestmark = pytest.mark.slow

SLEEPER = "#!/bin/sh\n#SBATCH --output=/dev/null\nexec sleep 600\n"


@pytest.fixture
def run(tmp_path: Path) -> RunInFiles:
    return RunInFiles.new(tmp_path / "runs/first")


def test_queue_is_shown_as_squeue_shows_it(cluster: Cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    working = cluster.sbatch(SLEEPER, "--nodes=3", "--exclusive")
    waiting = cluster.sbatch(SLEEPER, "--nodes=3", "--exclusive")
    array = cluster.sbatch(SLEEPER, "--array=0-3%2", "--exclusive")
    held = cluster.sbatch(SLEEPER, "--hold")
    jobs = [working, waiting, f"{array}_2", held, "999999"]
    runs = [RunInFiles.new(tmp_path / str(n)).submitted(job) for n, job in enumerate(jobs)]
    cluster.wait_for(working, "RUNNING")
    cluster.wait_for(waiting, lambda job: job["Reason"] in ("Resources", "Priority"))

    statuses, _ = read_statuses([run.path for run in runs], SlurmView())
    assert [status.state for status in statuses] == ["starting", "queued", "queued", "queued", "interrupted"]
    assert statuses[0].jobs[0].nodes == "n[1-3]"
    assert statuses[1].next in ("waiting in the queue (Resources)", "waiting in the queue (Priority)")
    assert statuses[3].next == f"job {held} is held (JobHeldUser): `scontrol release {held}`"
    assert statuses[4].next.startswith("its job ended (GONE)")

    stop(runs[2].path, wait=True)  # one element of the array
    stop(runs[1].path, wait=True)
    for run in (runs[0], runs[3]):
        cancel(run.path)
    left = [job for job in cluster.squeue() if not job.startswith(f"{array}_")]
    assert set(left) <= {working}  # which may still be ending
    cluster.run("scancel", array)
    cluster.wait_until(cluster.squeue, lambda queue: not queue)
    assert all((run.path / "STOP").exists() for run in runs[:4])


def test_status_asks_accounting_for_ended_jobs(accounting_cluster: Cluster, run, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", accounting_cluster.environment["SLURM_CONF"])
    failed = accounting_cluster.sbatch("#!/bin/sh\n#SBATCH --output=/dev/null\nexit 3\n")
    accounting_cluster.wait_for(failed, "FAILED")

    blocker = accounting_cluster.sbatch(SLEEPER, "--nodes=2", "--exclusive")
    array = accounting_cluster.sbatch(SLEEPER, "--array=0-3%2", "--exclusive")

    element = f"{array}_2"
    run.submitted(element, accounting=True)
    remembered = accounting_cluster.wait_until(
        lambda: query_accounting([failed, element]), lambda records: failed in records
    )
    assert remembered[failed].state == "FAILED"
    assert element not in remembered

    # Accounting lists it as one of those that wait, before and after it is cancelled.
    accounting_cluster.wait_until(
        lambda: run_slurm("sacct", "-n", "-X", "-j", array), lambda text: "PENDING" in text
    )
    assert read_status(run.path, SlurmView()).state == "queued"
    cancel(run.path)
    accounting_cluster.wait_until(
        lambda: read_status(run.path, SlurmView()), lambda status: not status.jobs[0].live
    )

    accounting_cluster.run("scancel", blocker, array)
    accounting_cluster.wait_until(accounting_cluster.squeue, lambda queue: not queue)
