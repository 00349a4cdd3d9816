"""`flipscale submit --cluster local`: a run that outlives the command, on this machine, without Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.time_limits import wait_until
from support.tiny_run import TinyRun

from flipscale.orchestration.cluster.local_executor import controller_lives
from flipscale.runs.directory import RunDirectory, existing_run
from flipscale.runs.submissions import read_submissions

pytestmark = pytest.mark.executes  # submitit starts its processes itself

SECONDS = 120  # for what takes a few seconds; only a hang takes as long


def submit(run: TinyRun, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flipscale", "submit", str(run.job), "--cluster", "local"]
    command += ["--site", str(site), *arguments]
    # The output is a pipe: this returns only when no process has it open, the detached run included.
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)


def lives(run: RunDirectory) -> bool:
    return controller_lives(read_submissions(run)[-1].job_id, run.path / "logs")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_detached_run_is_stopped_and_resumes(tiny_run: Callable[..., TinyRun], tmp_path: Path):
    # Start it, detached, with the site's environment.
    site = tmp_path / "site.yaml"
    site.write_text("{processes_per_node: 2, stop_before: 30s, environment: {OMP_NUM_THREADS: 1, SEEN: a b}}")
    tiny = tiny_run(cluster={"timeout": "10min"})
    done = submit(tiny, site, "phases.0.samples=64M")
    assert done.returncode == 0, done.stderr
    run = existing_run(tiny.output)
    (first,) = read_submissions(run)
    assert f"job {first.job_id}: tiny, 1 x 2 processes on this machine" in done.stdout
    pid = int(first.job_id)
    assert os.getsid(pid) == pid  # neither Ctrl-C nor the end of the terminal reaches it
    assert b"SEEN=a b" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    # A second submission is refused while it runs.
    again = submit(tiny, site, "phases.0.samples=64M")
    assert again.returncode == 2
    assert f"error: job {pid} of {run.path} is queued or running already" in again.stderr

    # A signal to the controller stops it.
    wait_until(lambda: (run.path / "metrics.jsonl").exists())
    os.kill(pid, signal.SIGTERM)  # submitit passes it on
    wait_until(lambda: not lives(run))
    (segment,) = (json.loads(line) for line in run.ledger.read_text().splitlines())
    assert segment["world_size"] == 2
    assert 0 < segment["samples_to"] < 64_000_000
    assert segment["lost_samples"] == 0

    # The same command resumes it, and the STOP file stops it.
    done = submit(tiny, site, "phases.0.samples=64M", "cluster.timeout=2min")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(read_submissions(run)) == 2 and (run.path / "segment.json").exists())
    run.stop_file.touch()
    wait_until(lambda: not lives(run))
    segment = json.loads(run.ledger.read_text().splitlines()[-1])
    assert (segment["reason"], segment["samples_from"] > 0) == ("stopped", True)


@pytest.mark.slow
def test_one_machine_takes_one_job_of_one_node(tiny_run: Callable[..., TinyRun], tmp_path: Path):
    site = tmp_path / "site.yaml"
    site.write_text("name: here")
    done = submit(tiny_run(cluster={"nodes": 2}), site)
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 nodes, and --cluster local has only this machine; add cluster.nodes=1" in done.stderr
