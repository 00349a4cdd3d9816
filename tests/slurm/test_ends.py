"""A job ends by itself, exactly, whichever of its processes is killed, and whenever."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from functools import partial

import psutil
import pytest
from support.cluster_handle import Cluster, is_requeued
from support.slurm_run import (
    DISTURBED_SAMPLES,
    ENDED,
    SAVES,
    SlurmRun,
    booked_and_elapsed,
    trained_without_gaps,
    two_nodes,
    two_phases,
)
from support.status_observer import StatusObserver
from support.tiny_run import TinyRun

from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory
from flipscale.runs.metrics import read_metrics

MakeRun = Callable[..., TinyRun]
Fault = Callable[[SlurmRun, str], None]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*came to a segment")]

POLLS = 1_000  # of the status, at least
LONG_SAMPLES = 110_000  # more than a paced run trains while thirty faults are caused, 64,000


def kill_rank_0(run: SlurmRun, job: str) -> None:
    run.kill(0, signal.SIGKILL)


def kill_rank_1(run: SlurmRun, job: str) -> None:
    run.kill(1, signal.SIGKILL)


def kill_all_ranks(run: SlurmRun, job: str) -> None:
    pids = [beat.pid for beat in run.beats()]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none of them sees another one die
        for pid in pids:
            psutil.Process(pid).send_signal(number)


def kill_the_step(run: SlurmRun, job: str) -> None:
    run.cluster.run("scancel", "--signal=KILL", f"{job}.1")  # step 0 looks for the run directory


def kill_a_worker(run: SlurmRun, job: str) -> None:
    """Kill a loader worker, as the kernel does if memory runs out."""
    psutil.Process(run.beats()[1].pid).children()[0].kill()


def kill_slurmd(run: SlurmRun, job: str) -> None:
    """Slurm calls the node down after a while, and has the job started again by itself."""
    node = run.beats()[1].node
    run.cluster.node_kill(node)
    restarts = int(run.cluster.job(job)["Restarts"])
    run.cluster.wait_for(job, lambda record: int(record["Restarts"]) > restarts, 120)
    run.cluster.node_start(node)


def kill_in_start_up(run: SlurmRun, job: str, rank: int) -> None:
    """Kill a process that has not met the others: nobody can have left a sign of life."""
    restarts = run.cluster.job(job)["Restarts"]
    release_until(run, job, lambda: run.process_of(rank, restarts) is not None)
    process = run.process_of(rank, restarts)
    assert process is not None
    process.kill()


def kill_who_is_waited_for(run: SlurmRun, job: str) -> None:
    """Kill rank 1 while rank 0 waits for it."""
    restarts = run.cluster.job(job)["Restarts"]
    late = run.cluster.wait_until(lambda: run.process_of(1, restarts), bool, 60)
    late.suspend()
    waits = run.cluster.wait_until(lambda: run.process_of(0, restarts), bool, 60)
    run.cluster.wait_until(lambda: waits.net_connections("tcp"), bool, 120)  # it listens for the others
    late.kill()


@pytest.mark.timeout(1200)
def test_a_job_whose_processes_are_killed_ends_by_itself_and_leaves_no_trace(
    tiny_run: MakeRun, undisturbed: TinyRun, patient_cluster: Cluster
) -> None:
    """Rank 0, all processes at once, and one process during the start-up; the long test has more."""
    run = SlurmRun.paced(patient_cluster, tiny_run("killed", **two_phases()))
    job = run.submit()

    # Not before a checkpoint: three starts that bring nothing end a run.
    for restarts, fault in enumerate((kill_rank_0, kill_all_ranks), 1):
        run.more_samples(2 * SAVES)
        fault(run, job)
        run.starts_again(job, restarts)

    kill_who_is_waited_for(run, job)
    run.starts_again(job, 3)
    assert "a stop was requested before the processes of this start had found each other" in run.log()
    run.wait_for_end(job)
    assert_no_trace(run, undisturbed, DISTURBED_SAMPLES)


@pytest.mark.long
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("kill_wait", [10, 30])
def test_five_of_each_fault_at_random_moments(
    tiny_run: MakeRun, new_cluster: Callable[..., Cluster], kill_wait: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is exact, each start is booked as Slurm's accounting has it, and `status` agrees with Slurm."""
    cluster = new_cluster("--nodes=3", f"--kill-wait={kill_wait}", "--grace=15", "--accounting")
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    straight = tiny_run("straight", **two_nodes(LONG_SAMPLES, data={"workers": 1}))
    run = SlurmRun.paced(cluster, tiny_run("killed", **two_nodes(LONG_SAMPLES, data={"workers": 1})))
    job = run.submit()
    observer = StatusObserver(run.run.output, pause=0.5)
    observer.start()
    moments = random.Random(kill_wait)

    faults = [kill_rank_0, kill_rank_1, kill_all_ranks, kill_the_step, kill_a_worker, kill_slurmd] * 5
    moments.shuffle(faults)
    for number, fault in enumerate(faults):
        reach(run, job, SAVES + moments.randrange(2 * SAVES))
        disturb(run, job, fault)

        # Starts that bring nothing end a run, so a start-up is killed only after a start that trained.
        if number % 6 == 5:
            disturb(run, job, partial(kill_in_start_up, rank=number // 6 % 2))

    release_until(run, job, lambda: cluster.job(job)["JobState"] in ENDED)
    restarts = run.wait_for_end(job)["Restarts"]
    assert observer.is_alive()
    observer.end()

    print(f"{restarts} restarts; {observer.count} polls: {dict(observer.polls)}")
    assert observer.contradictions == []
    assert observer.count >= POLLS
    assert_booked(run)
    assert straight.train(processes=2, timeout=1_200).returncode == 0
    assert_no_trace(run, straight, LONG_SAMPLES)


def disturb(run: SlurmRun, job: str, fault: Fault) -> None:
    """Cause a fault, and wait until Slurm has started the job again, or will."""
    restarts = int(run.cluster.job(job)["Restarts"])
    fault(run, job)
    run.cluster.wait_for(job, lambda record: int(record["Restarts"]) > restarts, 180)


def reach(run: SlurmRun, job: str, samples: int) -> None:
    """Wait until a start has trained this many samples; Slurm may start the job more than once for that.

    A node that was slow to answer may get a signal again that was meant for the start before.
    """
    beginning = time.time()

    def trained() -> bool:
        metrics = read_metrics(run.run.output)
        return bool(metrics) and metrics[-1].finite("time") > beginning and reached(metrics[-1].samples)

    def reached(count: int) -> bool:
        return count >= run.last_segment_end() + samples

    release_until(run, job, trained)


def release_until(run: SlurmRun, job: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition, without the two minutes for which Slurm holds a job that it starts again."""

    def holds() -> bool:
        if is_requeued(run.cluster.job(job)):
            run.cluster.command("release", job, check=False)
        return condition()

    run.cluster.wait_until(holds, bool, 600)


def test_the_only_process_of_a_job_is_killed(tiny_run: MakeRun, patient_cluster: Cluster) -> None:
    cluster = {"nodes": 1, "gpus_per_node": 1, "timeout": "60min"}
    run = SlurmRun.of(patient_cluster, tiny_run("only", **two_nodes(4_000, cluster=cluster)))
    job = run.submit()
    run.more_samples(320)
    run.kill(0, signal.SIGKILL)
    run.starts_again(job, 1)
    run.wait_for_end(job)

    assert [line.reason for line in run.ledger()] == ["killed", "done"], run.log()
    assert trained_without_gaps(run.ledger(), 4_000)
    assert audit(RunDirectory(run.run.output)).proven


def assert_booked(run: SlurmRun) -> None:
    """Check that each start lasted as long as Slurm's accounting says, also the last one."""
    booked = booked_and_elapsed(run)
    print("ledger and accounting", [(line.reason, line.seconds, elapsed) for line, elapsed in booked])
    for line, elapsed in booked:
        assert abs(line.seconds - elapsed) <= 5, booked


def assert_no_trace(run: SlurmRun, straight: TinyRun, samples: int) -> None:
    """Check that a disturbed run has the results of an undisturbed one, bit for bit."""
    ledger = run.ledger()
    assert ledger[-1].reason == "done", run.log()
    assert trained_without_gaps(ledger, samples), ledger
    assert audit(RunDirectory(run.run.output)).proven

    assert run.run.last_manifest()["progress"] == straight.last_manifest()["progress"]
    assert run.run.weights() == straight.weights()
    assert run.run.metrics() == straight.metrics()
