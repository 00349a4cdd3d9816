"""`flipscale submit`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flipscale.cli.console import print_table
from flipscale.cli.planning import print_budget, show_plan
from flipscale.config import Job, Site, load_job, load_site
from flipscale.errors import UserError
from flipscale.formatting import format_hours, format_minutes
from flipscale.orchestration.checks.cluster import examine_cluster
from flipscale.orchestration.checks.finding import Finding, refuse_errors, run_check
from flipscale.orchestration.checks.job import preflight
from flipscale.orchestration.checks.run_directory import nodes_see_run
from flipscale.orchestration.cluster.allocation import resolve_allocation
from flipscale.orchestration.cluster.local_executor import local_site
from flipscale.orchestration.cluster.submission import Submission
from flipscale.orchestration.cluster.submit import require_slurm, script_for, submit_array, submit_run
from flipscale.planning.plan import plan_job
from flipscale.planning.throughput import DEFAULT_GPU, Speed, make_speed
from flipscale.runs.directory import RunDirectory, committed_samples, run_directory
from flipscale.slurm import SlurmError

Runs = Sequence[tuple[RunDirectory, Job]]


def submit_jobs(
    arguments: Sequence[str],
    site_file: Path | None,
    cluster: str,
    at_most: int | None,
    ask_nodes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Check the jobs and submit them, or with `dry_run` only show what would be done."""
    files, overrides = _sorted_out(arguments)
    runs = [(run_directory(job), job) for job in (load_job(file, overrides) for file in files)]
    site = load_site(site_file)
    if at_most is not None and at_most < 1:
        raise UserError(f"--at-most is {at_most}; give at least 1")
    if cluster == "local":
        if len(runs) > 1:
            raise UserError("--cluster local takes one job at a time, since all would share this machine")
        site = local_site(site, runs[0][1])
    elif cluster != "slurm":
        raise UserError(f"--cluster is {cluster!r}; use slurm or local")
    elif not dry_run:
        require_slurm()
    script = script_for(runs, site, at_most=at_most).text(len(runs)) if cluster == "slurm" else None
    findings = [found for run, job in runs for found in _named(runs, job, preflight(run, job, site))]
    if cluster == "slurm":
        findings += _cluster_findings(runs[0][1], site, dry_run)
    if dry_run:
        if not as_json:
            for file, (_, job) in zip(files, runs, strict=True):
                _show_plan(file, overrides, job, site)
        _show(findings, script, as_json)
        return
    refuse_errors(findings)
    if ask_nodes and cluster == "slurm":
        run, job = runs[0]
        allocation = resolve_allocation(job, site)
        nodes = run_check("nodes", lambda: nodes_see_run(run, allocation, site))
        refuse_errors([nodes])
        findings.append(nodes)
    for found in findings:
        if found.level == "warning":
            print(f"warning: {found.name}: {found.text}", file=sys.stderr)
    if cluster == "slurm":
        submissions = submit_array(runs, site, at_most=at_most)
    else:
        submissions = [submit_run(*runs[0], site, cluster="local")]
    _report(runs, submissions, findings, as_json)


def _sorted_out(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Job files, and overrides: what holds a `=` and is no file."""
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if not paths:
        raise UserError("name at least one job file, such as jobs/quickstart.yaml")
    return [path / "job.yaml" if path.is_dir() else path for path in paths], overrides


def _named(runs: Runs, job: Job, findings: list[Finding]) -> list[Finding]:
    """Where there are several jobs, say whose findings they are."""
    if len(runs) == 1:
        return findings
    return [replace(found, name=f"{job.name}: {found.name}") for found in findings]


def _cluster_findings(job: Job, site: Site, dry_run: bool) -> list[Finding]:
    try:
        return examine_cluster(site, resolve_allocation(job, site))
    except (UserError, SlurmError) as error:
        if dry_run:
            return [Finding("Slurm", "warning", f"its settings are not known: {error}")]
        raise UserError(
            f"Slurm does not answer ({error}); submit where its commands reach their cluster, look at the "
            "plan alone with --dry-run, or run here with --cluster local"
        ) from None


def _show_plan(file: Path, overrides: list[str], job: Job, site: Site) -> None:
    asked = resolve_allocation(job, site)
    if asked.gpus_per_node:
        show_plan(file, overrides, site.gpu or DEFAULT_GPU, asked.world_size, as_json=False)
    else:
        print_budget(plan_job(job, make_speed(DEFAULT_GPU, asked.world_size)))


def _show(findings: list[Finding], script: str | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"preflight": [_record(found) for found in findings], "script": script}, indent=2))
        return
    print_table(("check", "", "what it means"), [(f.name, f.level, f.text) for f in findings])
    if script is not None:
        print(script)


def _record(finding: Finding) -> dict[str, str]:
    return {"check": finding.name, "level": finding.level, "text": finding.text}


def _report(runs: Runs, submissions: Sequence[Submission], findings: list[Finding], as_json: bool) -> None:
    if as_json:
        jobs = [
            _described(run, job, submission) for (run, job), submission in zip(runs, submissions, strict=True)
        ]
        print(json.dumps({"jobs": jobs, "preflight": [_record(found) for found in findings]}, indent=2))
        return
    for (run, job), submission in zip(runs, submissions, strict=True):
        where = submission.partition or ("this machine" if submission.cluster == "local" else "the default")
        print(
            f"job {submission.job_id}: {job.name}, {submission.nodes} x {submission.processes_per_node} "
            f"processes on {where}, segments of at most {format_minutes(submission.time_limit)}, "
            f"in {run.path}"
        )
        print(f"expected wall time: {_expectation(run, job, submission)}")
    print("\n".join(f"next: {_next(run)}" for run, _ in runs))


def _described(run: RunDirectory, job: Job, submission: Submission) -> dict[str, Any]:
    return {
        "name": job.name,
        "run": str(run.path),
        "job_id": submission.job_id,
        "cluster": submission.cluster,
        "nodes": submission.nodes,
        "processes_per_node": submission.processes_per_node,
        "time_limit_seconds": submission.time_limit,
        "expected_seconds": _expected_seconds(run, job, submission),
        "next": _next(run),
    }


def _expectation(run: RunDirectory, job: Job, submission: Submission) -> str:
    seconds, on = _expected_seconds(run, job, submission), _speed(job, submission)
    if seconds is None or on is None:
        return (
            "unknown; name the site's gpu to have it computed, or look again when it has trained for a while"
        )
    return (
        f"{format_hours(seconds)} of training on {on.gpus} x {on.gpu.name}, if they reach {on.mfu:.0%} of "
        "their peak, and the time in the queue"
    )


def _expected_seconds(run: RunDirectory, job: Job, submission: Submission) -> float | None:
    """Of training what is left, by the same arithmetic as `flipscale plan`; None where nothing is known."""
    on = _speed(job, submission)
    if on is None:
        return None
    plan = plan_job(job, on)
    return plan.seconds * (1 - committed_samples(run) / plan.samples)


def _speed(job: Job, submission: Submission) -> Speed | None:
    asked = resolve_allocation(job, submission.site)
    known = submission.site.gpu is not None and asked.gpus_per_node
    return make_speed(submission.site.gpu or "", asked.world_size) if known else None


def _next(run: RunDirectory) -> str:
    return f"flipscale status {shlex.quote(str(run.path))}"
