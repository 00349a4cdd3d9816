"""`flipscale submit` on a real Slurm: jobs, arrays, chains, and nodes that do not see the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster_handle import Cluster
from support.range_server import serving
from support.tiny_run import TinyRun

from flipscale.config import load_job, load_site
from flipscale.orchestration.cluster.blamed_nodes import avoidance
from flipscale.runs.directory import existing_run
from flipscale.runs.ledger import read_ledger
from flipscale.runs.submissions import Submission, read_submissions

SITE = Path(__file__).parents[2] / "slurm/dev/site.yaml"

pytestmark = pytest.mark.slow


def submit(
    cluster: Cluster, *arguments: str | Path, site: Path = SITE, check: bool = True
) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "flipscale", "submit", *arguments, "--site", site)
    return cluster.run(*command, check=check)


def last(run: TinyRun) -> Submission:
    return read_submissions(existing_run(run.output))[-1]


@pytest.fixture
def make(tiny_run: Callable[..., TinyRun]) -> Callable[..., TinyRun]:
    return lambda name="tiny", nodes=1: tiny_run(name, cluster={"nodes": nodes, "timeout": "10min"})


@pytest.fixture
def held_site(tmp_path: Path) -> Path:
    """The site of the development cluster, with jobs that wait until they are released."""
    path = tmp_path / "held.yaml"
    path.write_text(yaml.safe_dump({"extends": str(SITE), "sbatch": {"exclusive": True, "hold": True}}))
    return path


def test_a_job_on_two_nodes_spends_its_budget(cluster: Cluster, make: Callable[..., TinyRun]):
    run = make(nodes=2)
    output = submit(cluster, run.job, "--check-nodes").stdout
    job = last(run).job_id
    assert f"job {job}: tiny, 2 x 1 processes on low" in output
    assert f"next: flipscale status {run.output}" in output
    cluster.wait_for(job, "COMPLETED", 120)

    segments = read_ledger(run.output)
    assert segments[-1].reason == "done"
    assert segments[-1].samples_to == sum(phase.samples for phase in load_job(run.job).phases)
    assert segments[-1].world_size == 2


def test_no_file_of_a_submitted_run_shows_a_secret(
    cluster: Cluster, tiny_run: Callable[..., TinyRun], data_set: Path, tmp_path: Path
):
    secret = "hunter2hunter2"
    with serving(data_set / "train") as server:
        server.guard = lambda path, headers: 200 if path.endswith(f"?sig={secret}") else 403
        train = f"{server.address}/{{00000..00002}}.tar?sig=${{SIG}}"
        run = tiny_run(data={"train": train}, cluster={"nodes": 2, "timeout": "10min"})
        shell = replace(cluster, environment={**cluster.environment, "SIG": secret})
        output = submit(shell, run.job)
        job = last(run).job_id
        cluster.wait_for(job, "COMPLETED", 120)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sh" for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret not in output.stdout + output.stderr


def test_a_waiting_run_is_refused_and_a_cancelled_one_resumes(
    cluster: Cluster, make: Callable[..., TinyRun], held_site: Path
):
    run = make()
    submit(cluster, run.job, site=held_site)
    first = last(run).job_id

    again = submit(cluster, run.job, site=held_site, check=False)
    assert again.returncode == 2
    assert f"error: job {first} of {run.output} is queued or running already" in again.stderr

    cluster.run("scancel", first)
    cluster.wait_for(first, "CANCELLED")
    submit(cluster, run.job, site=held_site)
    assert last(run).job_id != first
    cluster.run("scancel", last(run).job_id)
    cluster.wait_for(last(run).job_id, "CANCELLED")


def test_an_array_keeps_its_runs_apart_and_its_limit(cluster: Cluster, make: Callable[..., TinyRun]):
    runs = [make(name) for name in ("one", "two")]
    submit(cluster, *(run.job for run in runs), "--at-most", "1")

    jobs = [last(run).job_id for run in runs]
    assert [job.split("_")[1] for job in jobs] == ["0", "1"]
    assert cluster.job(jobs[1])["JobState"] == "PENDING"
    for run, job in zip(runs, jobs, strict=True):
        cluster.wait_for(job, "COMPLETED", 120)
        assert json.loads((run.output / "ledger.jsonl").read_text().splitlines()[-1])["reason"] == "done"
        logs = {path.name for path in (run.output / "logs").glob("*.out")}
        assert logs == {f"{job}_0_log.out"}


def test_a_node_that_does_not_see_the_run_ends_the_job_with_a_message(
    cluster: Cluster, make: Callable[..., TinyRun], held_site: Path
):
    run = make(nodes=2)
    submit(cluster, run.job, site=held_site)
    job = last(run).job_id

    (run.output / "token").unlink()  # all emulated nodes share one file system
    cluster.run("scontrol", "release", job)
    record = cluster.wait_for(job, "FAILED", 60)
    assert record["ExitCode"] == "2:0"

    log = (run.output / "logs" / f"{job}_0_log.err").read_text()
    for node in ("n1", "n2"):
        sentence = f"flipscale: {node} does not see the run directory, which must be on a file system"
        assert sentence in log
    assert not (run.output / "ledger.jsonl").exists()


def test_refusal_of_the_cluster_is_one_sentence(
    cluster: Cluster, make: Callable[..., TinyRun], tmp_path: Path
):
    run = make()
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"extends": str(SITE), "sbatch": {"reservation": "none"}}))

    done = submit(cluster, run.job, site=site, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: Slurm refused the job: ")
    assert "Traceback" not in done.stderr
    assert cluster.squeue() == {}


def test_a_job_that_would_wait_for_ever_is_refused(
    cluster: Cluster, make: Callable[..., TinyRun], tmp_path: Path
):
    run = make(nodes=2)
    site = tmp_path / "site.yaml"
    cores = cluster.run("sinfo", "--noheader", "--partition=low", "--format=%c").stdout.split()[0]
    site.write_text(yaml.safe_dump({"extends": str(SITE), "cpus_per_process": int(cores) + 1}))

    done = submit(cluster, run.job, site=site, check=False)
    assert done.returncode == 2
    assert done.stderr.count("Requested node configuration is not available") == 1
    assert "correct cpus_per_process" in done.stderr
    assert not run.output.exists()
    assert cluster.squeue() == {}

    (judged,) = [
        finding
        for finding in json.loads(submit(cluster, run.job, "--dry-run", "--json", site=site).stdout)[
            "preflight"
        ]
        if finding["check"] == "sbatch"
    ]
    assert judged["level"] == "error"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setup": ["true", "module load nothing"]}, "a setup line of the site failed: module load nothing"),
        ({"setup": "source {}/failing.sh"}, "a setup line of the site failed: source"),
        (
            {"python": "/nowhere/python"},
            "this command does not start flipscale here: env --block-signal=TERM",
        ),
    ],
    ids=["line", "file", "python"],
)
def test_a_start_without_what_it_needs_ends_at_once(
    cluster: Cluster, make: Callable[..., TinyRun], tmp_path: Path, changes: dict[str, Any], message: str
):
    (tmp_path / "failing.sh").write_text("false\nfalse\nreturn 3\n")
    text = yaml.safe_dump({"extends": str(SITE), **changes}).replace("{}", str(tmp_path))
    site = tmp_path / "site.yaml"
    site.write_text(text)
    run = make()
    submit(cluster, run.job, site=site)

    job = last(run).job_id
    assert cluster.wait_for(job, "FAILED", 60)["ExitCode"] == "2:0"
    assert message in (run.output / "logs" / f"{job}_0_log.err").read_text()


def test_a_requeued_job_avoids_a_blamed_node(
    cluster: Cluster, make: Callable[..., TinyRun], held_site: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make()
    submit(cluster, run.job, site=held_site)
    job = last(run).job_id
    (run.output / "ledger.jsonl").write_text(2 * (json.dumps({"suspects": ["n1"]}) + "\n"))
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])

    avoid = avoidance(existing_run(run.output), load_site(held_site), job)
    avoid()
    assert cluster.job(job)["ExcNodeList"] == "n1"

    cluster.run("scontrol", "release", job)
    assert cluster.wait_for(job, "COMPLETED", 120)["NodeList"] != "n1"
    assert read_ledger(run.output)[-1].nodes != ("n1",)


@pytest.mark.long
def test_a_script_through_torchrun(cluster: Cluster, make: Callable[..., TinyRun], tmp_path: Path):
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"extends": str(SITE), "launcher": "torchrun", "processes_per_node": 2}))
    run = make(nodes=2)
    submit(cluster, run.job, site=site)
    cluster.wait_for(last(run).job_id, "COMPLETED", 180)
    segment = read_ledger(run.output)[-1]
    assert (segment.reason, segment.world_size) == ("done", 4)
