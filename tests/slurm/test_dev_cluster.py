"""The development cluster itself, on which all other Slurm tests rest."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cluster_handle import Cluster
from support.time_limits import time_limit

pytestmark = pytest.mark.slow

READY_SECONDS = 15
OWN = ("--nodes=2", "--kill-wait=2")  # most jobs below ignore TERM
# One task per node that prints which signals it gets, and ends only when the file $GATE exists.
TALKER = """#!/bin/sh
srun --kill-on-bad-exit=1 sh -c '
trap "echo $SLURMD_NODENAME attempt ${SLURM_RESTART_COUNT:-0} got TERM" TERM
echo $SLURMD_NODENAME attempt ${SLURM_RESTART_COUNT:-0} is $$ of $PPID
until [ -e "$GATE" ]; do sleep 0.1; done'
"""


@pytest.fixture
def own_cluster(slurm_installed: None) -> Iterator[Cluster]:
    """A cluster for one test, which damages it."""
    with tempfile.TemporaryDirectory(prefix="flipscale-slurm-") as directory:
        running = Cluster.up(Path(directory), *OWN)
        try:
            yield running
        finally:
            running.down()


def await_lines(out: Path, pattern: str, count: int) -> list[tuple[str, ...]]:
    """Wait for `count` lines of a job's output that match, and return their groups."""

    def read() -> list[tuple[str, ...]]:
        lines = out.read_text().splitlines() if out.exists() else []
        return [match.groups() for line in lines if (match := re.fullmatch(pattern, line))]

    return Cluster.wait_until(read, lambda lines: len(lines) >= count)


def await_tasks(out: Path, count: int, attempt: int = 0) -> dict[str, tuple[int, int]]:
    """Return the pids of a TALKER's task and of its step daemon, by node."""
    lines = await_lines(out, rf"(n\d) attempt {attempt} is (\d+) of (\d+)", count)
    return {node: (int(task), int(step)) for node, task, step in lines}


def alive(pids: list[int]) -> list[int]:
    """Return which of these processes still run; zombies do not."""
    states: dict[int, str] = {}
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        if status.exists() and (state := re.search(r"^State:\s+(\w)", status.read_text(), re.MULTILINE)):
            states[pid] = state[1]
    return [pid for pid, state in states.items() if state not in "ZX"]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ports(cluster: Cluster) -> list[int]:
    saved = cluster.status()["ports"]
    return [saved["controller"], *saved["nodes"]]


def test_up_is_quick_and_every_node_runs_a_step(
    cluster: Cluster, own_cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    own_cluster.down()
    began = time.monotonic()
    own_cluster.command("up", *OWN)
    took = time.monotonic() - began
    record_property("seconds_until_up", took)
    assert took <= time_limit(READY_SECONDS)
    nodes = cluster.run("srun", "--nodes=3", "printenv", "SLURMD_NODENAME").stdout.split()
    assert sorted(nodes) == ["n1", "n2", "n3"]


def test_up_again_changes_nothing_and_other_options_are_refused(own_cluster: Cluster) -> None:
    before = own_cluster.status()
    assert before["running"]
    assert own_cluster.command("up", *OWN).stdout.startswith("already up")
    assert own_cluster.status() == before

    refused = own_cluster.command("up", "--nodes=4", check=False)
    assert refused.returncode == 1
    assert "other options" in refused.stderr
    assert own_cluster.status() == before


def test_low_job_gets_a_signal_and_is_requeued_and_released(cluster: Cluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    out = tmp_path / "out"
    job = cluster.sbatch(TALKER, "--nodes=3", f"--output={out}", f"--export=ALL,GATE={gate}")
    await_tasks(out, 3)

    high = cluster.preempt()
    assert sorted(await_lines(out, r"(n\d) attempt 0 got TERM", 3)) == [("n1",), ("n2",), ("n3",)]
    assert cluster.job(job)["JobState"] == "RUNNING"  # in its grace time

    # A launcher does this once it has saved; the grace time would end the job later.
    cluster.run("scontrol", "requeue", job)

    gate.touch()
    cluster.wait_for(high, "COMPLETED")
    cluster.release(job)

    done = cluster.wait_for(job, "COMPLETED")
    assert done["Restarts"] == "1"
    assert sorted(await_tasks(out, 3, attempt=1)) == ["n1", "n2", "n3"]


def test_release_refuses_a_job_that_waits_for_something_else(cluster: Cluster) -> None:
    job = cluster.sbatch("#!/bin/sh\n", "--hold", "--output=/dev/null")
    refused = cluster.command("release", job, check=False)
    assert refused.returncode == 1
    assert "JobHeldUser" in refused.stderr
    cluster.run("scancel", job)


def test_short_partition_does_not_run_longer_jobs(cluster: Cluster) -> None:
    job = cluster.sbatch("#!/bin/sh\n", "--partition=short", "--time=6", "--output=/dev/null")
    cluster.wait_for(job, lambda record: record["Reason"] in ("PartitionConfig", "PartitionTimeLimit"))
    cluster.run("scancel", job)


def test_killed_node_leaves_its_tasks_and_starts_clean(own_cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own_cluster.sbatch(TALKER, "--nodes=2", f"--output={out}", "--export=ALL,GATE=/nonexistent")
    tasks = {node: task for node, (task, _) in await_tasks(out, 2).items()}

    own_cluster.node_kill("n2")
    assert own_cluster.status()["daemons"]["n2"] is None
    assert alive([tasks["n2"]])  # as on a real cluster: only the daemon is gone
    own_cluster.node_kill("n2", steps=True)
    assert not alive([tasks["n2"]])
    assert alive([tasks["n1"]])

    own_cluster.node_start("n2")
    own_cluster.run("scancel", "--user", str(os.getuid()))
    own_cluster.wait_until(own_cluster.squeue, lambda jobs: not jobs)
    assert own_cluster.run("srun", "--nodes=2", "echo", "back").stdout.split() == ["back", "back"]


def test_down_ends_tasks_that_will_not_end_and_frees_the_ports(own_cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own_cluster.sbatch(TALKER, "--nodes=2", f"--output={out}", "--export=ALL,GATE=/nonexistent")
    tasks = await_tasks(out, 2).values()

    own_cluster.node_kill("n2")  # an orphan, which no daemon knows any more
    everyone = own_cluster.status()["processes"]
    assert {pid for task in tasks for pid in task} <= {*everyone}  # tasks and step daemons

    taken = ports(own_cluster)
    own_cluster.down()
    assert alive(everyone) == []
    assert not any(map(listens, taken))
    assert own_cluster.command("status", check=False).returncode == 1
    assert own_cluster.command("down").stdout == "it was not up\n"


def test_up_recovers_what_sudden_death_left(own_cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own_cluster.sbatch(TALKER, "--nodes=2", f"--output={out}", "--export=ALL,GATE=/nonexistent")
    tasks = [pid for task in await_tasks(out, 2).values() for pid in task]
    status = own_cluster.status()
    for pid in status["daemons"].values():  # the tasks and their step daemons survive
        os.kill(pid, signal.SIGKILL)
    own_cluster.wait_until(own_cluster.status, lambda state: not state["running"])
    assert alive(tasks)

    own_cluster.command("up", *OWN)
    assert not alive(tasks)
    assert own_cluster.run("srun", "--nodes=2", "echo", "back").stdout.split() == ["back", "back"]


def test_a_recorded_pid_that_now_is_another_process_is_left_alone(own_cluster: Cluster) -> None:
    own_cluster.down()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        for record in (own_cluster.directory / "run").glob("*.started"):
            record.write_text(f"{stranger.pid}\n")
        own_cluster.command("up", *OWN)
        own_cluster.down()
        assert stranger.poll() is None
        stranger.kill()


def test_two_clusters_do_not_meet(cluster: Cluster, own_cluster: Cluster) -> None:
    before = cluster.status()
    assert not {*ports(cluster)} & {*ports(own_cluster)}
    job = own_cluster.sbatch("#!/bin/sh\n", "--output=/dev/null")
    other = cluster.sbatch("#!/bin/sh\n", "--output=/dev/null")
    assert job != other, "processes of both jobs would meet on one port"

    own_cluster.wait_for(job, "COMPLETED")
    own_cluster.run("srun", "--nodes=2", "true")
    own_cluster.down()
    after = cluster.status()
    assert (after["daemons"], after["running"]) == (before["daemons"], True)
    cluster.run("srun", "--nodes=3", "true")


def test_accounting_knows_a_job_that_failed(accounting_cluster: Cluster) -> None:
    job = accounting_cluster.sbatch("#!/bin/sh\nexit 3\n", "--output=/dev/null")
    accounting_cluster.wait_for(job, "FAILED")
    options = ("--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,ExitCode")

    def record() -> str:
        return accounting_cluster.run("sacct", *options).stdout.strip()

    shown = accounting_cluster.wait_until(record, lambda text: text.startswith("FAILED"))
    assert shown == "FAILED|3:0"


@pytest.mark.long
def test_lost_node_is_noticed_and_the_job_restarts_elsewhere(
    new_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = new_cluster("--nodes=3", "--kill-wait=2")
    gate = tmp_path / "gate"
    out = tmp_path / "out"
    job = cluster.sbatch(TALKER, "--nodes=2", f"--output={out}", f"--export=ALL,GATE={gate}")
    lost = max(await_tasks(out, 2))  # the batch script, with its srun, is on the other node

    cluster.node_kill(lost, steps=True)
    cluster.wait_until(lambda: cluster.node_state(lost), lambda state: state.startswith("down"), timeout=120)

    gate.touch()
    cluster.release(job)

    done = cluster.wait_for(job, "COMPLETED")
    assert done["Restarts"] == "1"
    assert {*await_tasks(out, 2, attempt=1)} == {"n1", "n2", "n3"} - {lost}
    cluster.node_start(lost)
    assert cluster.node_state(lost) == "idle"
