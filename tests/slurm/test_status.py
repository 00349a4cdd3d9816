"""status, stop and cancel with a real Slurm and real jobs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.cluster_handle import Cluster, is_requeued
from support.run_in_files import RunInFiles
from support.slurm_run import ENDED, SAVES, SlurmRun, booked_and_elapsed, two_nodes
from support.status_observer import StatusObserver
from support.tiny_run import TinyRun

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


POLLS = 1_000


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_status_never_contradicts_slurm(
    tiny_run: Callable[..., TinyRun], patient_cluster: Cluster, monkeypatch
) -> None:
    """Through waiting, starts, kills of one and of all processes, preemption, requeues, a stop and an end."""
    monkeypatch.setenv("SLURM_CONF", patient_cluster.environment["SLURM_CONF"])
    blocker = patient_cluster.sbatch(SLEEPER, "--nodes=3", "--exclusive")
    run = SlurmRun.of(patient_cluster, tiny_run("observed", **two_nodes(200_000)))
    run.submit()
    observer = StatusObserver(run.run.output)
    observer.start()
    patient_cluster.wait_until(lambda: observer.polls["PENDING", "queued"], lambda seen: seen >= 20)
    patient_cluster.run("scancel", blocker)

    faults: list[Callable[[], object]] = [
        lambda: run.kill(1, signal.SIGKILL),
        lambda: run.kill(0, signal.SIGKILL),
        lambda: [run.kill(rank, signal.SIGKILL) for rank in (0, 1)],
        lambda: patient_cluster.preempt(seconds=1),
        lambda: patient_cluster.run("scancel", "--signal=TERM", run.newest_job()),
        lambda: patient_cluster.run("scontrol", "requeue", run.newest_job()),
        lambda: patient_cluster.run("scancel", run.newest_job()),
    ]
    turns = 0
    while observer.count < POLLS or turns < len(faults):
        assert observer.is_alive()
        run.more_samples(2 * SAVES, timeout=240)  # three starts that save nothing end a run
        before = patient_cluster.job(run.newest_job())["Restarts"]
        with suppress(ProcessLookupError):
            faults[turns % len(faults)]()
        turns += 1

        # Whoever starts the run again: Slurm, which holds the job for two minutes, or a person.
        record = patient_cluster.wait_for(
            run.newest_job(),
            lambda job, before=before: (
                job["JobState"] in ENDED or is_requeued(job) or job["Restarts"] != before
            ),
            240,
        )
        if record["JobState"] in ENDED:
            run.submit()
        elif is_requeued(record):
            patient_cluster.command("release", run.newest_job())

    run.more_samples(160, timeout=240)  # a job that waits would be cancelled, not stopped
    stop(run.run.output, wait=True)
    patient_cluster.wait_until(patient_cluster.squeue, lambda jobs: not jobs)
    ended = observer.count + 20
    patient_cluster.wait_until(lambda: observer.count, lambda count: count >= ended)
    observer.end()
    print(f"{observer.count} polls, {turns} faults: {dict(observer.polls)}")
    assert observer.contradictions == []
    assert {"queued", "starting", "training", "stopped"} <= {state for _, state in observer.polls}


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_ledger_agrees_with_accounting(tiny_run: Callable[..., TinyRun], accounting_cluster: Cluster) -> None:
    """After a kill of all processes, a requeue during start-up, and a preemption: within 5 s per start."""
    run = SlurmRun.of(accounting_cluster, tiny_run("accounted", **two_nodes(8_000)))
    job = run.submit()
    run.more_samples(320, timeout=240)

    # Killed with all its processes, then (by hand if need be) started again, and requeued in its start-up.
    for rank in (0, 1):
        run.kill(rank, signal.SIGKILL)
    record = accounting_cluster.wait_for(
        job, lambda job: job["JobState"] in ENDED or is_requeued(job), timeout=240
    )
    if record["JobState"] in ENDED:
        job = run.submit()
    else:
        accounting_cluster.command("release", job)
    restarts = int(accounting_cluster.wait_for(job, "RUNNING", timeout=120)["Restarts"])
    accounting_cluster.run("scontrol", "requeue", job)
    run.starts_again(job, restarts + 1, timeout=240)
    run.more_samples(320, timeout=240)
    accounting_cluster.preempt(seconds=1)
    run.starts_again(job, restarts + 2, timeout=240)
    run.wait_for_end(job)

    booked = booked_and_elapsed(run)
    print("ledger and accounting", [(line.reason, line.seconds, elapsed) for line, elapsed in booked])
    for line, elapsed in booked:
        assert abs(line.seconds - elapsed) <= 5, booked
    assert run.ledger()[0].lost_samples > 0
    assert run.ledger()[0].startup_seconds > 0
    assert "failed_start" in [line.reason for line in run.ledger()]
