"""The batch script that `flipscale submit` hands to sbatch.

`UPDATE_GOLDEN=1 python -m pytest tests/orchestration/cluster/test_batch_script.py` writes the golden scripts
again. Read the difference before you commit it, and copy the script of docs/slurm.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_slurm import FakeSlurm
from support.submitting import WriteSite, check_syntax, dry_run, submit
from support.tiny_run import TinyRun

from flipscale.config import load_job, load_site
from flipscale.orchestration.cluster.submit import script_for
from flipscale.runs.directory import run_directory

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden"
NO_JOBS = {"base", "evaluation"}
JOBS = [path for path in sorted(ROOT.glob("jobs/**/*.yaml")) if path.parent.name not in NO_JOBS]
SITES = sorted(ROOT.glob("slurm/**/*.yaml"))


@pytest.mark.parametrize("job", JOBS, ids=lambda path: str(path.relative_to(ROOT / "jobs")))
def test_every_job_shows_its_script_without_slurm(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", FakeSlurm.make(tmp_path / "bare", installed=False).path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    script = dry_run(capsys, job)["script"]

    assert sorted(tmp_path.rglob("*")) == before
    check_syntax(script)
    cluster = load_job(job).cluster
    assert f"#SBATCH --nodes={cluster.nodes}\n" in script
    assert f"#SBATCH --ntasks-per-node={cluster.gpus_per_node}\n" in script
    assert f"#SBATCH --time={cluster.timeout // 60}\n" in script


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_every_site_gives_a_script(
    path: Path, fake: FakeSlurm, tiny_run: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
):
    site = load_site(path)
    gpus = site.gpus_per_node or 1
    cluster = {"nodes": 2, "gpus_per_node": gpus, "timeout": "36h"}
    job = tiny_run(data={"lanes": 16}, cluster=cluster).job

    script = dry_run(capsys, job, site=path)["script"]

    check_syntax(script)
    tasks = 1 if site.launcher == "torchrun" else gpus
    assert f"#SBATCH --ntasks-per-node={tasks}\n" in script
    assert f"#SBATCH --{'requeue' if site.restart == 'requeue' else 'no-requeue'}\n" in script
    assert f"#SBATCH --signal=USR2@{site.stop_before}\n" in script
    cores = site.cpus_per_process or (site.cores_per_node or 0) // gpus
    assert f"export SRUN_CPUS_PER_TASK={cores * gpus // tasks}\n" in script
    assert ("FLIPSCALE_PROCESSES_PER_NODE" in script) == (site.launcher == "torchrun")
    assert "--wckey=submitit" not in script
    assert f"--block-signal=USR2 {site.python or ''}" in script
    assert f"#SBATCH --time={min(site.time_limit or 36 * 3600, 36 * 3600) // 60}\n" in script
    lines = script.splitlines()
    assert [line for line in lines if line in site.setup] == list(site.setup)


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_script_of_an_example_site_is_the_golden_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/opt/flipscale/bin/python")
    site = load_site(path)
    overrides = ["output=/scratch/flip/vitb16", "cluster.nodes=2", "cluster.timeout=36h"]
    if site.gpus_per_node:
        overrides.append(f"cluster.gpus_per_node={site.gpus_per_node}")
    job = load_job(ROOT / "jobs/table2/flip_b16.yaml", overrides)

    script = script_for([(run_directory(job), job)], site).text()

    golden = GOLDEN / f"{path.stem}.sh"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(script)
    assert script == golden.read_text()


def test_page_shows_a_golden_script():
    page = (ROOT / "docs/slurm.md").read_text()
    assert f"```sh\n{(GOLDEN / 'h100_preemptible.sh').read_text()}\n```\n" in page


def test_links_of_a_site_reach_its_processes(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
):
    job = tiny_run(cluster={"gpus_per_node": 1}).job
    written = site(network={"fabric_bandwidth": "12.5GB", "fabric_latency_us": 25})
    script = dry_run(capsys, job, site=written)["script"]
    assert "export FLIPSCALE_FABRIC_BANDWIDTH=12500000000\n" in script
    assert "FLIPSCALE_NODE_BANDWIDTH" not in script


def test_text_of_a_site_stays_text(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun], tmp_path: Path
):
    run = tiny_run(name="a b's $(touch x)", cluster={"gpus_per_node": 1})
    job = tmp_path / "job.yaml"
    run.job.rename(job)
    hostile = "'; touch stolen; $(touch stolen) `touch stolen`"

    submit(job, site=site(environment={"TEXT": hostile}, partition="low", sbatch={"comment": hostile}))

    script = fake.submitted()
    check_syntax(script)
    # Run the script with commands that only note their arguments.
    for name in ("srun", "env"):
        stub = fake.root / "bin" / name
        stub.unlink()
        stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$TEXT" "$@" >> {fake.root}/arguments\n')
        stub.chmod(0o755)
    subprocess.run(["bash", "-c", script], check=True, cwd=tmp_path)
    arguments = (fake.root / "arguments").read_text().splitlines()
    assert hostile in arguments
    assert f"{run.output}/logs" in arguments
    assert not (tmp_path / "stolen").exists()
    assert not (tmp_path / "x").exists()
