"""The command line: every command in one place, each one thin; what it needs is imported when it runs."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.data_app import data_app
from flipscale.cli.evaluation_app import evaluation_app
from flipscale.cli.options import AsJson, JobFile, Overrides, Run
from flipscale.errors import RunError, StoppedEarly, UserError

EXIT_FAILED, EXIT_USER, EXIT_STOPPED = 1, 2, 75

app = typer.Typer(
    name="flipscale",
    help="Train FLIP (CLIP with most of the image masked out) and spend samples-seen budgets exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(evaluation_app)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine.")
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Run a command; exit 0 done, 2 wrong input, 75 stopped with work left, 1 anything else."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except UserError as error:
        _end(f"error: {error}", EXIT_USER)
    except StoppedEarly as stopped:
        _end(str(stopped), EXIT_STOPPED)
    except RunError as error:
        _end(f"error: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        _end("interrupted", EXIT_FAILED)


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


@app.command()
def train(
    job: JobFile,
    overrides: Overrides = None,
    time_limit: Annotated[
        str | None,
        typer.Option(help="Stop cleanly after this long, e.g. 30min (exit 75).", show_default=False),
    ] = None,
) -> None:
    """Train a job here, or in every process that torchrun starts; go on where it stopped."""
    from flipscale.cli.training import train_job

    train_job(job, overrides or [], time_limit)


@app.command()
def submit(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB... [KEY.SUB=VALUE]...",
            help="Job files (or run directories, to go on), and changes to all of them.",
            show_default=False,
        ),
    ],
    site: Annotated[
        Path | None,
        typer.Option(help="Site file; $FLIPSCALE_SITE, or a plain cluster, by default.", show_default=False),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="slurm, or local: this machine alone, without Slurm.")
    ] = "slurm",
    at_most: Annotated[
        int | None, typer.Option(help="Of several jobs, how many run at once.", show_default=False)
    ] = None,
    check_nodes: Annotated[
        bool, typer.Option("--check-nodes", help="First ask free nodes whether they see the run directory.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show plan, checks and script; needs no Slurm.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit jobs that then need nobody until their budget is spent; several become one job array."""
    from flipscale.cli.submission import submit_jobs

    submit_jobs(jobs, site, cluster, at_most, check_nodes, dry_run, as_json)


@app.command()
def plan(
    job: JobFile,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="GPU to plan for, such as a100-80gb.")] = "h100-80gb",
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs; the job's nodes x gpus_per_node by default.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Share of the GPUs' peak to count with; 0.25 by default.")
    ] = None,
    images_per_second: Annotated[
        float | None, typer.Option(help="Measured speed of the whole job, instead of --mfu.")
    ] = None,
    images_per_core: Annotated[
        float | None, typer.Option(help="Images/s a core of the loader, from `bench loader`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's phases, learning rates and FLOPs, whether it fits, and how long it takes."""
    from flipscale.cli.planning import show_plan

    show_plan(job, overrides or [], gpu, gpus, mfu, images_per_second, images_per_core, as_json=as_json)


@app.command()
def schema(
    of: Annotated[str, typer.Argument(metavar="[job|evaluation]", help="What it describes.")] = "job",
) -> None:
    """Print the JSON Schema of job files, for editors, or of the document of an evaluation."""
    from flipscale.config import job_schema
    from flipscale.evaluation.document import evaluation_schema

    schemas = {"job": job_schema, "evaluation": evaluation_schema}
    if of not in schemas:
        raise UserError(f"there is no schema of {of!r}; choose {' or '.join(schemas)}")
    print(json.dumps(schemas[of](), indent=2))


@bench_app.command()
def loader(
    job: JobFile,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(help="How long to read.")] = 10.0,
    workers: Annotated[
        int | None,
        typer.Option(help="Loader processes; all cores by default, 0 for none.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Images per second per core that the loader gives with a job's data, views and tokenizer."""
    from flipscale.cli.bench import bench_loader

    bench_loader(job, overrides or [], seconds, workers, as_json)


@app.command()
def status(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, or one with runs below.", show_default=False)
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Redraw every few seconds; Ctrl-C ends it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, what its job and its processes do, and what to do next; or list all runs."""
    from flipscale.cli.status import show_status

    show_status(run, watch=watch, as_json=as_json)


@app.command()
def stop(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the run has saved and ended.")] = False,
) -> None:
    """Let a run save and end after its current step and not start again; take it from the queue."""
    from flipscale.cli.stopping import stop_run

    stop_run(run, wait=wait)


@app.command()
def cancel(run: Run) -> None:
    """End a run now: as `stop`, and cancel its Slurm jobs, or signal its processes on this machine."""
    from flipscale.cli.stopping import cancel_run

    cancel_run(run)


@app.command()
def doctor(
    node: Annotated[
        bool, typer.Option("--node", help="Measure speeds, also of many nodes (torchrun, srun).")
    ] = False,
    directory: Annotated[Path, typer.Option(help="Where runs are to be kept.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Check this machine's software, limits and Slurm, or its speed; exit 1 where a check fails."""
    from flipscale.cli.doctor import examine

    examine(directory.resolve(), node=node, as_json=as_json)
