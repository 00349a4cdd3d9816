"""The checks of `flipscale submit`: of the jobs, of the cluster, and of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flipscale.config import Job, Site
from flipscale.errors import UserError
from flipscale.orchestration.checks.acceptance import check_acceptance, examine_blamed_nodes
from flipscale.orchestration.checks.cluster import examine_cluster
from flipscale.orchestration.checks.finding import Finding, run_check
from flipscale.orchestration.checks.job import preflight
from flipscale.orchestration.checks.run_directory import nodes_see_run
from flipscale.orchestration.cluster.allocation import resolve_allocation
from flipscale.runs.directory import RunDirectory
from flipscale.slurm import SlurmError

Runs = Sequence[tuple[RunDirectory, Job]]


def check_submission(
    runs: Runs, site: Site, cluster: str, *, script: str | None, dry_run: bool, from_zero: bool
) -> list[Finding]:
    """Check the jobs and the cluster; with several jobs, the name of a finding begins with its job's.

    Args:
        runs: The run directories with their jobs.
        site: The site of the cluster.
        cluster: "slurm" or "local".
        script: The batch script; None without Slurm.
        dry_run: Whether a Slurm that does not answer is only a warning.
        from_zero: Whether runs whose checkpoints are lost may begin at zero.

    Raises:
        UserError: If Slurm does not answer.
    """
    findings: list[Finding] = []
    for run, job in runs:
        for finding in preflight(run, job, site, from_zero=from_zero):
            name = finding.name if len(runs) == 1 else f"{job.name}: {finding.name}"
            findings.append(replace(finding, name=name))

    if cluster == "slurm":
        findings += _cluster_findings(runs, site, script or "", dry_run)
    return findings


def _cluster_findings(runs: Runs, site: Site, script: str, dry_run: bool) -> list[Finding]:
    allocation = resolve_allocation(runs[0][1], site)
    try:
        return [
            *examine_cluster(site, allocation),
            *examine_blamed_nodes([run for run, _ in runs], site, allocation),
            run_check("sbatch", lambda: check_acceptance(script)),
        ]
    except (UserError, SlurmError) as error:
        if dry_run:
            return [Finding("Slurm", "warning", f"its settings are not known: {error}")]
        raise UserError(
            f"Slurm does not answer ({error}); submit on a machine whose Slurm commands reach their cluster, "
            "look at the plan only with --dry-run, or run here with --cluster local"
        ) from None


def ask_nodes(runs: Runs, site: Site) -> Finding:
    """Ask free nodes whether they see the run directory of the first run, for all of them."""
    run, job = runs[0]
    allocation = resolve_allocation(job, site)
    return run_check("nodes", lambda: nodes_see_run(run, allocation, site))
