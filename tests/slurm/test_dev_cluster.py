"""The development cluster itself: what all other Slurm tests rest on."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cluster_handle import SCRIPT, Cluster

pytestmark = pytest.mark.slow

READY_SECONDS = 15
OWN = ("--nodes=2", "--kill-wait=2")  # most jobs below do not heed TERM
# One task a node that says what it gets, and ends only when there is a file $GATE.
TALKER = """#!/bin/sh
srun --kill-on-bad-exit=1 sh -c '
trap "echo $SLURMD_NODENAME attempt ${SLURM_RESTART_COUNT:-0} got TERM" TERM
echo $SLURMD_NODENAME attempt ${SLURM_RESTART_COUNT:-0} is $$ of $PPID
until [ -e "$GATE" ]; do sleep 0.1; done'
"""


def test_no_other_process_has_tests_on_clusters(request: pytest.FixtureRequest) -> None:
    """Where pytest-xdist took no notice of groups, jobs of two clusters would disturb each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@slurm")


@pytest.fixture
def own_cluster(slurm_installed: None) -> Iterator[Cluster]:
    """A cluster for a test that harms it."""
    with tempfile.TemporaryDirectory(prefix="flipscale-slurm-") as directory:
        running = Cluster.up(Path(directory), *OWN)
        try:
            yield running
        finally:
            running.down()


def await_lines(out: Path, pattern: str, count: int) -> list[tuple[str, ...]]:
    """Wait for this many lines of a job's output that match, and return their groups."""

    def read() -> list[tuple[str, ...]]:
        lines = out.read_text().splitlines() if out.exists() else []
        return [found.groups() for line in lines if (found := re.fullmatch(pattern, line))]

    return Cluster.wait_until(read, lambda lines: len(lines) >= count)


def await_tasks(out: Path, count: int, attempt: int = 0) -> dict[str, tuple[int, int]]:
    """The process of a TALKER's task and its step daemon's, by node."""
    lines = await_lines(out, rf"(n\d) attempt {attempt} is (\d+) of (\d+)", count)
    return {node: (int(task), int(step)) for node, task, step in lines}


def alive(pids: list[int]) -> list[int]:
    """Which of these processes still run (no zombies)."""
    states = {}
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
    assert took <= READY_SECONDS
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


def test_low_job_is_told_to_stop_requeued_and_released(cluster: Cluster, tmp_path: Path) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    job = cluster.sbatch(TALKER, "--nodes=3", f"--output={out}", f"--export=ALL,GATE={gate}")
    await_tasks(out, 3)
    high = cluster.preempt()
    assert sorted(await_lines(out, r"(n\d) attempt 0 got TERM", 3)) == [("n1",), ("n2",), ("n3",)]
    assert cluster.job(job)["JobState"] == "RUNNING"  # in its grace time
    cluster.run(
        "scontrol", "requeue", job
    )  # what a launcher does once it has saved; grace would end it later
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
    own_cluster.node_kill("n2")  # an orphan, of which no daemon knows any more
    everyone = own_cluster.status()["processes"]
    assert {pid for task in tasks for pid in task} <= {*everyone}  # tasks and step daemons
    held = ports(own_cluster)
    own_cluster.down()
    assert alive(everyone) == []
    assert not any(map(listens, held))
    assert own_cluster.command("status", check=False).returncode == 1
    assert own_cluster.command("down").stdout == "it was not up\n"


def test_up_recovers_what_sudden_death_left(own_cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own_cluster.sbatch(TALKER, "--nodes=2", f"--output={out}", "--export=ALL,GATE=/nonexistent")
    tasks = [pid for task in await_tasks(out, 2).values() for pid in task]
    status = own_cluster.status()
    for pid in status["daemons"].values():  # the tasks and their step daemons live on
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


def test_clusters_side_by_side_do_not_meet(cluster: Cluster, own_cluster: Cluster) -> None:
    before = cluster.status()
    assert not {*ports(cluster)} & {*ports(own_cluster)}
    own_cluster.run("srun", "--nodes=2", "true")
    own_cluster.down()
    after = cluster.status()
    assert (after["daemons"], after["running"]) == (before["daemons"], True)
    cluster.run("srun", "--nodes=3", "true")


def test_accounting_knows_a_job_that_failed(accounting_cluster: Cluster) -> None:
    job = accounting_cluster.sbatch("#!/bin/sh\nexit 3\n", "--output=/dev/null")
    accounting_cluster.wait_for(job, "FAILED")
    asked = (
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--jobs={job}",
        "--format=State,ExitCode",
    )
    shown = accounting_cluster.wait_until(
        lambda: accounting_cluster.run(*asked).stdout.strip(), lambda text: text.startswith("FAILED")
    )
    assert shown == "FAILED|3:0"


def test_env_makes_a_shell_use_the_cluster(cluster: Cluster) -> None:
    exports = cluster.command("env").stdout
    done = subprocess.run(
        ["sh", "-c", f"{exports}\nsrun --nodes=1 printenv SLURM_CLUSTER_NAME"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.strip() == f"dev{cluster.status()['ports']['controller']}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["up", "--nodes=5"], "invalid choice"),
        (["up", "--grace=soon"], "not a whole number of seconds"),
        (["preempt"], "There is no cluster"),
        (["env"], "does not run"),
        (["node-kill", "n1"], "There is no cluster"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    name, *rest = arguments
    command = [sys.executable, str(SCRIPT), name, "--directory", str(tmp_path / "none"), *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_up_refuses_a_directory_with_other_files(slurm_installed: None, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "thesis.tex").touch()
        command = [sys.executable, str(SCRIPT), "up", "--directory", directory]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 1
        assert "holds other files" in done.stderr
        assert [path.name for path in Path(directory).iterdir()] == ["thesis.tex"]


def test_up_says_what_is_wrong_with_a_line_of_slurm_conf(slurm_installed: None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, str(SCRIPT), "up", "--directory", directory, "--conf", "Nonsense=1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert "Nonsense" in done.stderr
        status = [sys.executable, str(SCRIPT), "status", "--json", "--directory", directory]
        shown = subprocess.run(status, capture_output=True, text=True, check=False, timeout=30)
        assert json.loads(shown.stdout)["processes"] == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_can_have_one(slurm_installed: None) -> None:
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None:
        pytest.skip("no Python outside of root's directories, which another user cannot read")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="flipscale-slurm-") as home:
        scripts = Path(
            shutil.copytree(SCRIPT.parent, Path(home, "dev"), ignore=shutil.ignore_patterns("__*"))
        )
        os.chown(home, nobody.pw_uid, nobody.pw_gid)

        def run(*argv: str) -> str:
            done = subprocess.run(
                argv,
                user=nobody.pw_uid,
                group=nobody.pw_gid,
                extra_groups=[],
                cwd=home,
                env={"PATH": "/usr/bin:/bin", "SLURM_CONF": f"{home}/c/slurm.conf"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        def command(name: str, *arguments: str) -> str:
            return run(python, str(scripts / SCRIPT.name), name, "--directory", f"{home}/c", *arguments)

        command("up", *OWN)
        try:
            assert run("srun", "--nodes=2", "id", "--user").split() == [str(nobody.pw_uid)] * 2
            low = run("sbatch", "--parsable", "--exclusive", "--nodes=2", "--wrap=srun sleep 60").strip()
            Cluster.wait_until(lambda: run("squeue", "--noheader", "--format=%T"), lambda s: s == "RUNNING\n")
            high = command("preempt", "--seconds=0").strip()
            Cluster.wait_until(
                lambda: run("scontrol", "--oneliner", "show", "job", high), lambda s: "COMPLETED" in s
            )
            assert "JobState=COMPLETED" not in run("scontrol", "--oneliner", "show", "job", low)
        finally:
            command("down")


@pytest.mark.long
def test_lost_node_is_noticed_and_the_job_goes_on_elsewhere(
    new_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = new_cluster("--nodes=3", "--kill-wait=2")
    gate, out = tmp_path / "gate", tmp_path / "out"
    job = cluster.sbatch(TALKER, "--nodes=2", f"--output={out}", f"--export=ALL,GATE={gate}")
    lost = max(await_tasks(out, 2))  # the batch script, and with it srun, is on the other
    cluster.node_kill(lost, steps=True)
    cluster.wait_until(lambda: cluster.node_state(lost), lambda state: state.startswith("down"), timeout=120)
    gate.touch()
    cluster.release(job)
    done = cluster.wait_for(job, "COMPLETED")
    assert done["Restarts"] == "1"
    assert {*await_tasks(out, 2, attempt=1)} == {"n1", "n2", "n3"} - {lost}
    cluster.node_start(lost)
    assert cluster.node_state(lost) == "idle"
