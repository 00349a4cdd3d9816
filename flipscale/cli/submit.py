"""`flipscale submit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.options import AsJson
from flipscale.errors import UserError
from flipscale.terminal import say

if TYPE_CHECKING:
    from flipscale.config import Job, Site
    from flipscale.runs.directory import RunDirectory
    from flipscale.runs.submissions import Submission

    Runs = Sequence[tuple[RunDirectory, Job]]


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """The arguments and options of `flipscale submit`."""

    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB... [KEY.SUB=VALUE]...",
            help="Job files (or run directories, to resume), and changes to all of them.",
            show_default=False,
        ),
    ]
    site: Annotated[
        Path | None,
        typer.Option(help="Site file; default: $FLIPSCALE_SITE, or a plain cluster.", show_default=False),
    ] = None
    cluster: Annotated[str, typer.Option(help="slurm, or local: only this machine, without Slurm.")] = "slurm"
    at_most: Annotated[
        int | None, typer.Option(help="How many of several jobs run at once.", show_default=False)
    ] = None
    check_nodes: Annotated[
        bool, typer.Option("--check-nodes", help="First ask free nodes whether they see the run directory.")
    ] = False
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="First run a step of each phase on fake GPUs.")
    ] = False
    from_zero: Annotated[
        bool, typer.Option("--from-zero", help="Begin again although a run's checkpoints are lost.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show plan, checks and script; needs no Slurm.")
    ] = False
    as_json: AsJson = False


def submit(options: SubmitOptions) -> None:
    """Submit jobs that then need nobody until their budget is spent; several become one job array."""
    from flipscale.cli.rehearse import keep_rehearsals, rehearse_submission, require_gpu
    from flipscale.cli.submission_checks import ask_nodes, check_submission
    from flipscale.cli.submission_report import print_dry_run, print_plans, print_submissions
    from flipscale.config import load_job
    from flipscale.orchestration.checks.finding import refuse_errors
    from flipscale.orchestration.cluster.submit import script_for
    from flipscale.runs.directory import run_directory

    files, overrides = _files_and_overrides(options.jobs)
    jobs = [load_job(file, overrides) for file in files]
    runs = [(run_directory(job), job) for job in jobs]
    site = _site(runs, options)
    if options.rehearse:
        require_gpu(site)

    script = None
    if options.cluster == "slurm":
        script = script_for(runs, site, at_most=options.at_most).text(len(runs))
    findings = check_submission(
        runs,
        site,
        options.cluster,
        script=script,
        dry_run=options.dry_run,
        from_zero=options.from_zero,
    )
    if options.dry_run:
        if not options.as_json:
            print_plans(jobs, site)
        rehearsals = rehearse_submission(runs, site, quiet=options.as_json) if options.rehearse else []
        print_dry_run(findings, script, [asdict(one) for one in rehearsals], options.as_json)
        return

    # Refuse before nodes are asked: that can take a while.
    refuse_errors(findings)
    if options.check_nodes and options.cluster == "slurm":
        findings.append(ask_nodes(runs, site))
        refuse_errors(findings)
    rehearsals = rehearse_submission(runs, site, quiet=options.as_json) if options.rehearse else []
    for finding in findings:
        if finding.level == "warning":
            say(f"warning: {finding.name}: {finding.text}", error=True)

    submissions = _submitted(runs, site, options)
    if options.rehearse:
        keep_rehearsals(runs, rehearsals)
    documents = [asdict(one) for one in rehearsals]
    print_submissions(runs, submissions, findings, documents, options.as_json)


def _files_and_overrides(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the job files and the overrides: an argument with a `=` that is not an existing file."""
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if not paths:
        raise UserError("name at least one job file, such as jobs/quickstart.yaml")

    return [path / "job.yaml" if path.is_dir() else path for path in paths], overrides


def _site(runs: Runs, options: SubmitOptions) -> Site:
    """Load the site, and check the options that say where the jobs run."""
    from flipscale.config import load_site
    from flipscale.orchestration.cluster.local_executor import local_site
    from flipscale.orchestration.cluster.submit import require_slurm

    site = load_site(options.site)
    if options.at_most is not None and options.at_most < 1:
        raise UserError(f"--at-most is {options.at_most}; give at least 1")

    if options.cluster == "local":
        if len(runs) > 1:
            raise UserError("--cluster local takes one job at a time, since all would share this machine")
        return local_site(site, runs[0][1])

    if options.cluster != "slurm":
        raise UserError(f"--cluster is {options.cluster!r}; use slurm or local")
    if not options.dry_run:
        require_slurm()
    return site


def _submitted(runs: Runs, site: Site, options: SubmitOptions) -> list[Submission]:
    from flipscale.orchestration.cluster.submit import submit_array, submit_run

    if options.cluster == "slurm":
        return submit_array(runs, site, at_most=options.at_most, from_zero=options.from_zero)

    run, job = runs[0]
    return [submit_run(run, job, site, cluster="local", from_zero=options.from_zero)]
