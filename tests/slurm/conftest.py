"""Real clusters for the tests of this directory, each in a directory and on ports of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.cluster_handle import SCRIPT, Cluster
from support.made_once import made_once
from support.slurm_run import two_phases
from support.tiny_run import TinyRun

INSTALL_SECONDS = 280


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Install Slurm if possible, which needs root. Without Slurm tests are skipped; in CI they fail."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if all(shutil.which(program, path=path) for program in ("slurmctld", "slurmd", "slurmdbd", "mariadbd")):
        return

    install = [sys.executable, str(SCRIPT), "install"]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    if done.returncode:
        reason = f"no Slurm: {done.stderr.strip().splitlines()[-1]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def new_cluster(slurm_installed: None) -> Iterator[Callable[..., Cluster]]:
    """Start another cluster; the arguments are options of `up`. All are ended after the last test."""
    with ExitStack() as clusters:
        yield lambda *options: clusters.enter_context(_cluster(*options))


@pytest.fixture(scope="session")
def cluster(new_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes, so that a job of two has one to spare. A test leaves them idle and working."""
    return new_cluster("--nodes=3", "--kill-wait=2")


@pytest.fixture(scope="session")
def patient_cluster(new_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes; as on real clusters, KillWait is longer than a process needs to exit."""
    return new_cluster("--nodes=3", "--kill-wait=10", "--grace=15")


@pytest.fixture(scope="session")
def accounting_cluster(new_cluster: Callable[..., Cluster]) -> Cluster:
    """Two nodes and accounting, so that sacct works."""
    return new_cluster("--nodes=2", "--kill-wait=2", "--accounting")


@pytest.fixture(scope="session")
def undisturbed(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The job of `two_phases`, which nothing disturbed; trained once per run of pytest."""

    def make(root: Path) -> None:
        root.mkdir()
        done = TinyRun.write(root, "straight", data_set, **two_phases()).train(processes=2, timeout=600)
        assert done.returncode == 0, done.stderr

    root = made_once("undisturbed", make, tmp_path_factory)
    return TinyRun(root / "straight.yaml", root / "straight")


@contextmanager
def _cluster(*options: str) -> Generator[Cluster]:
    # Sockets have short names only, which pytest's own directories exceed.
    with tempfile.TemporaryDirectory(prefix="flipscale-slurm-") as directory:
        running = Cluster.up(Path(directory), *options)
        try:
            yield running
        finally:
            running.down()
