"""What `flipscale submit` prints: plans, checks and script of a dry run, and the jobs that were submitted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from flipscale.cli.console import print_table
from flipscale.cli.plan_tables import print_budget, print_plan
from flipscale.config import Job, Site
from flipscale.formatting import format_hours, format_minutes
from flipscale.orchestration.checks.finding import Finding
from flipscale.orchestration.cluster.allocation import Allocation, resolve_allocation
from flipscale.planning.plan import plan_job
from flipscale.planning.throughput import Speed, make_speed
from flipscale.runs.directory import RunDirectory
from flipscale.runs.manifest import committed_samples
from flipscale.runs.submissions import Submission
from flipscale.terminal import print_json, say

Runs = Sequence[tuple[RunDirectory, Job]]


def print_plans(jobs: Sequence[Job], site: Site) -> None:
    """Print the plan of each job on the GPUs of a site; only its budget on a site without GPUs."""
    for job in jobs:
        asked = resolve_allocation(job, site)
        speed = _speed_on(asked, site)
        if asked.gpus_per_node:
            plan = plan_job(job, speed)
            print_plan(plan, job)
            if plan.remedy is not None:
                say(plan.remedy)
        else:
            print_budget(plan_job(job, speed))


def print_dry_run(
    findings: Sequence[Finding], script: str | None, rehearsals: Sequence[dict[str, Any]], as_json: bool
) -> None:
    """Print the checks and the batch script, which is None without Slurm; in JSON the rehearsals, too."""
    if as_json:
        document = {"preflight": [_record(finding) for finding in findings], "script": script}
        print_json(document | _rehearsed(rehearsals))
        return

    rows = [(finding.name, finding.level, finding.text) for finding in findings]
    print_table(("check", "", "what it means"), rows)
    if script is not None:
        say(script)


def _rehearsed(rehearsals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"rehearsals": rehearsals} if rehearsals else {}


def print_submissions(
    runs: Runs,
    submissions: Sequence[Submission],
    findings: Sequence[Finding],
    rehearsals: Sequence[dict[str, Any]],
    as_json: bool,
) -> None:
    """Print the submitted jobs, when they may be done, and the command that shows their status.

    Args:
        runs: The run directories with their jobs.
        submissions: One per run, in the same order.
        findings: The checks, for the JSON document.
        rehearsals: The rehearsals as documents, if there were any.
        as_json: Print a JSON document instead of sentences.
    """
    submitted = [(run, job, submission) for (run, job), submission in zip(runs, submissions, strict=True)]
    if as_json:
        document = {
            "jobs": [_document(*one) for one in submitted],
            "preflight": [_record(finding) for finding in findings],
        }
        print_json(document | _rehearsed(rehearsals))
        return

    for run, job, submission in submitted:
        place = submission.partition or ("this machine" if submission.cluster == "local" else "the default")
        say(
            f"job {submission.job_id}: {job.name}, {submission.nodes} x {submission.processes_per_node} "
            f"processes on {place}, segments of at most {format_minutes(submission.time_limit)}, "
            f"in {run.path}"
        )
        say(f"expected wall time: {_expectation(run, job, submission)}")
    say("\n".join(f"next: {_status_command(run)}" for run, _ in runs))


def _record(finding: Finding) -> dict[str, str]:
    """Return a finding by the keys of `submit --json`."""
    return {"check": finding.name, "level": finding.level, "text": finding.text}


def _document(run: RunDirectory, job: Job, submission: Submission) -> dict[str, Any]:
    return {
        "name": job.name,
        "run": str(run.path),
        "job_id": submission.job_id,
        "cluster": submission.cluster,
        "nodes": submission.nodes,
        "processes_per_node": submission.processes_per_node,
        "time_limit_seconds": submission.time_limit,
        "expected_seconds": _expected_seconds(run, job, _speed(job, submission)),
        "next": _status_command(run),
    }


def _expectation(run: RunDirectory, job: Job, submission: Submission) -> str:
    on = _speed(job, submission)
    seconds = _expected_seconds(run, job, on)
    if seconds is None or on is None:
        return (
            "unknown; name the site's gpu to have it computed, or look again when it has trained for a while"
        )
    return (
        f"{format_hours(seconds)} of training on {on.gpus} x {on.gpu.name}, if they reach {on.mfu:.0%} of "
        "their peak, and the time in the queue"
    )


def _expected_seconds(run: RunDirectory, job: Job, on: Speed | None) -> float | None:
    """Return the seconds of training that are left, as `flipscale plan` computes them; None if unknown."""
    if on is None:
        return None

    plan = plan_job(job, on)
    return plan.seconds * (1 - committed_samples(run) / plan.samples)


def _speed(job: Job, submission: Submission) -> Speed | None:
    """Return the speed of the job's GPUs, or None if the site does not name them."""
    asked = resolve_allocation(job, submission.site)
    gpu = submission.site.gpu
    return None if gpu is None or not asked.gpus_per_node else _speed_on(asked, submission.site)


def _speed_on(asked: Allocation, site: Site) -> Speed:
    return make_speed(None, asked.world_size, gpus_per_node=asked.processes_per_node, site=site)


def _status_command(run: RunDirectory) -> str:
    return f"flipscale status {shlex.quote(str(run.path))}"
