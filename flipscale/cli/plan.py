"""`flipscale plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from flipscale.cli.options import AsJson, JobFile, Overrides
from flipscale.terminal import print_json


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The arguments and options of `flipscale plan`."""

    job: JobFile
    overrides: Overrides = None
    gpu: Annotated[str, typer.Option(help="GPU to plan for, such as a100-80gb.")] = "h100-80gb"
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs; default: the job's nodes x gpus_per_node.")
    ] = None
    mfu: Annotated[
        float | None, typer.Option(help="Share of the GPUs' peak to count with; default: 0.25.")
    ] = None
    images_per_second: Annotated[
        float | None, typer.Option(help="Measured speed of the whole job, instead of --mfu.")
    ] = None
    images_per_core: Annotated[
        float | None, typer.Option(help="Images/s per core of the loader, from `bench loader`.")
    ] = None
    as_json: AsJson = False


def plan(options: PlanOptions) -> None:
    """Show a job's phases, learning rates and FLOPs, whether it fits, and how long it takes."""
    from flipscale.cli.plan_tables import print_plan
    from flipscale.config import load_job
    from flipscale.planning.plan import plan_job
    from flipscale.planning.throughput import IMAGES_PER_CORE, make_speed

    job = load_job(options.job, options.overrides or [])
    gpus = job.cluster.gpus if options.gpus is None else options.gpus
    per_core = IMAGES_PER_CORE if options.images_per_core is None else options.images_per_core
    planned = plan_job(job, make_speed(options.gpu, gpus, options.mfu, options.images_per_second), per_core)

    if options.as_json:
        print_json(asdict(planned))
    else:
        print_plan(planned, job)
