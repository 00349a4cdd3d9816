"""The commands of the development cluster: their refusals, and other users."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cluster_handle import SCRIPT, Cluster

pytestmark = pytest.mark.slow

OWN = ("--nodes=2", "--kill-wait=2")


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


def test_env_works_while_the_controller_is_down(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster(*OWN)
    before = cluster.command("env").stdout
    os.kill(cluster.status()["daemons"]["slurmctld"], signal.SIGKILL)
    assert cluster.command("env").stdout == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["up", "--nodes=5"], "invalid choice"),
        (["up", "--grace=soon"], "not a whole number of seconds"),
        (["preempt"], "There is no cluster"),
        (["env"], "There is no cluster"),
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

        script = (python, str(scripts / SCRIPT.name))

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
            return run(*script, name, "--directory", f"{home}/c", *arguments)

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
