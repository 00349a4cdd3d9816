"""status, stop and cancel with what a real Slurm says of real jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_handle import Cluster
from run_in_files import RunInFiles

from flipscale.commands.stopping import cancel_run, stop_run
from flipscale.orchestration.liveness import SlurmView
from flipscale.orchestration.status import read_status, read_statuses

pytestmark = pytest.mark.slow

SLEEPER = "#!/bin/sh\n#SBATCH --output=/dev/null\nexec sleep 600\n"


@pytest.fixture
def run(tmp_path: Path) -> RunInFiles:
    return RunInFiles.new(tmp_path / "runs/first")


def test_a_queue_as_squeue_shows_it(cluster: Cluster, tmp_path, monkeypatch):
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

    stop_run(runs[2].path, wait=True)  # one element of the array
    stop_run(runs[1].path, wait=True)
    for run in (runs[0], runs[3]):
        cancel_run(run.path)
    left = [job for job in cluster.squeue() if not job.startswith(f"{array}_")]
    assert set(left) <= {working}  # which may still be ending
    cluster.run("scancel", array)
    cluster.wait_until(cluster.squeue, lambda queue: not queue)
    assert all((run.path / "STOP").exists() for run in runs[:4])


def test_what_sacct_remembers(accounting_cluster: Cluster, run, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", accounting_cluster.environment["SLURM_CONF"])
    failed = accounting_cluster.sbatch("#!/bin/sh\n#SBATCH --output=/dev/null\nexit 3\n")
    accounting_cluster.wait_for(failed, "FAILED")
    blocker = accounting_cluster.sbatch(SLEEPER, "--nodes=2", "--exclusive")
    array = accounting_cluster.sbatch(SLEEPER, "--array=0-3%2", "--exclusive")
    other = RunInFiles.new(tmp_path / "other").submitted(f"{array}_2", accounting=True)
    run.submitted(failed, accounting=True)
    statuses = accounting_cluster.wait_until(
        lambda: read_statuses([run.path, other.path], SlurmView())[0],
        lambda seen: seen[0].jobs[0].state == "FAILED" and seen[1].state == "queued",
    )
    assert statuses[0].slurm == "sacct"
    assert statuses[0].next.startswith("its job ended (FAILED) before training began")
    cancel_run(other.path)
    accounting_cluster.wait_until(
        lambda: read_status(other.path, SlurmView()), lambda seen: not seen.jobs[0].live
    )
    accounting_cluster.run("scancel", blocker, array)
    accounting_cluster.wait_until(accounting_cluster.squeue, lambda queue: not queue)
