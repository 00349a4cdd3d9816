"""The checks before a job waits in a queue: each is one function that answers in a sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from flipscale.budget import check_world_size
from flipscale.config import Job, Site
from flipscale.errors import UserError
from flipscale.orchestration.checks.candidate import Candidate
from flipscale.orchestration.checks.data import check_captions, check_data, check_tokenizer
from flipscale.orchestration.checks.finding import CheckWarning, Finding, run_check
from flipscale.orchestration.checks.model import check_memory, check_weights
from flipscale.orchestration.checks.run_directory import check_disk, check_run_directory
from flipscale.orchestration.cluster.allocation import resolve_allocation
from flipscale.runs.directory import RunDirectory
from flipscale.sharding.limits import check_sharding
from flipscale.sharding.optimizer import check_optimizer


def preflight(run: RunDirectory, job: Job, site: Site, *, from_zero: bool = False) -> list[Finding]:
    """Check what this machine can see of a job; writes nothing and asks no cluster.

    Raises:
        UserError: If the site cannot give what the job requests.
    """
    candidate = Candidate(run, job, site, resolve_allocation(job, site), from_zero)
    checks: tuple[tuple[str, Callable[[Candidate], str]], ...] = (
        ("python", _check_python),
        ("run directory", check_run_directory),
        ("processes", _check_processes),
        ("data", check_data),
        ("captions", check_captions),
        ("tokenizer", check_tokenizer),
        ("weights", check_weights),
        ("disk", check_disk),
        ("memory", check_memory),
    )
    return [run_check(name, lambda check=check: check(candidate)) for name, check in checks]


def _check_python(candidate: Candidate) -> str:
    """Check that Python can be started with the stop signals blocked."""
    blocked = ["env", "--block-signal=TERM", "true"]
    if subprocess.run(blocked, capture_output=True, check=False).returncode:
        raise UserError(
            "`env` here has no --block-signal, which makes an early signal wait for the run; install "
            "coreutils 8.31 or newer, here and on the nodes"
        )
    return candidate.site.python or "this one, on the nodes too"


def _check_processes(candidate: Candidate) -> str:
    allocation = candidate.allocation
    job = candidate.job
    check_world_size(allocation.world_size, job.data.lanes)
    check_sharding(job.sharding, allocation.world_size, "cuda" if allocation.gpus_per_node else "cpu")
    check_optimizer(job.optimizer, job.sharding)

    if allocation.cpus_per_process is None and allocation.world_size > 1:
        raise CheckWarning(
            f"{allocation.world_size} processes; the site {candidate.site.name} names no cores, and Slurm's "
            "default is one per process: set cores_per_node there"
        )
    cores = f" with {allocation.cpus_per_process} cores each" if allocation.cpus_per_process else ""
    return (
        f"{allocation.nodes} x {allocation.processes_per_node}{cores}, "
        f"{allocation.gpus_per_node} GPUs per node"
    )
