"""`flipscale plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.options import AsJson, JobFile, Overrides
from flipscale.errors import UserError
from flipscale.terminal import print_json


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The arguments and options of `flipscale plan`."""

    job: JobFile
    overrides: Overrides = None
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPU to plan for, such as a100-80gb; default: the site's, or h100-80gb.", show_default=False
        ),
    ] = None
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs; default: the job's nodes x gpus_per_node.")
    ] = None
    site: Annotated[
        Path | None,
        typer.Option(help="Site file, for the network and the cores; default: $FLIPSCALE_SITE."),
    ] = None
    mfu: Annotated[
        float | None,
        typer.Option(help="Share of the GPUs' peak to count with; default: what is published for them."),
    ] = None
    images_per_second: Annotated[
        float | None, typer.Option(help="Measured speed of the whole job, instead of --mfu.")
    ] = None
    images_per_core: Annotated[
        float | None, typer.Option(help="Images/s per core of the loader, from `bench loader`.")
    ] = None
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(help="Price of a GPU for an hour: also show what the job costs.")
    ] = None
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try other numbers of GPUs, strategies and recomputation.")
    ] = False
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Also run a step of each phase, as `flipscale rehearse` does.")
    ] = False
    as_json: AsJson = False


def plan(options: PlanOptions) -> None:
    """Show what a job does: phases, FLOPs, whether it fits, how long it takes, and what bounds it."""
    from flipscale.cli.plan_tables import print_plan, print_sweep
    from flipscale.cli.rehearsal_tables import print_rehearsal
    from flipscale.cli.rehearse import rehearse_on
    from flipscale.config import load_job, load_site
    from flipscale.planning.plan import plan_job
    from flipscale.planning.sweep import sweep_job
    from flipscale.planning.throughput import IMAGES_PER_CORE, make_speed

    if options.sweep and options.rehearse:
        raise UserError("--sweep compares estimates; rehearse the candidate that you choose, without --sweep")
    job = load_job(options.job, options.overrides or [])
    site = load_site(options.site)
    speed = make_speed(
        options.gpu,
        job.cluster.gpus if options.gpus is None else options.gpus,
        options.mfu,
        options.images_per_second,
        gpus_per_node=job.cluster.gpus_per_node,
        site=site,
    )
    per_core = IMAGES_PER_CORE if options.images_per_core is None else options.images_per_core
    planned = plan_job(job, speed, per_core, options.price_per_gpu_hour)

    if options.sweep:
        candidates = sweep_job(job, speed, per_core, options.price_per_gpu_hour)
        if options.as_json:
            print_json({"candidates": [asdict(one) for one in candidates]})
        else:
            print_sweep(candidates, speed)
        return

    rehearsed = rehearse_on(job, speed) if options.rehearse else None
    if options.as_json:
        print_json(asdict(planned) | ({} if rehearsed is None else {"rehearsal": asdict(rehearsed)}))
    else:
        print_plan(planned, job)
        if rehearsed is not None:
            print_rehearsal(rehearsed)
    if planned.remedy is not None:
        raise UserError(planned.remedy)
